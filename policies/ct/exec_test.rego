package ct.exec_test

import data.ct.admission
import data.ct.detect
import data.ct.exec

general := {"audit": "off", "exec": {"mode": "off", "trust": {"source": true, "built": true}, "inline": {}}}

config := {
	"version": 1,
	"interpreters": {"/usr/bin/guile": {"endings": [".scm"], "options": ["-c"], "arguments": "first"}},
	"general": general,
	"profiles": {
		"exact": {
			"acme/audited": object.union(general, {"exec": {"mode": "audit"}}),
			"acme/strict": {"audit": "on", "exec": {"mode": "terminate", "trust": {"built": true}, "inline": {"python3": true}}},
		},
		"prefixes": {},
	},
	"untrusted": {"audit": "off", "exec": {"mode": "enforce", "trust": {"source": true}, "inline": {"/bin/dash": true}}},
}

settings(change) := given if {
	question := object.union({"version": 1, "run": {"trust": "trusted", "repository": "acme/site"}}, change)
	given := exec.settings with input as question with data.ct.config as config
}

audit(change) := given if {
	question := object.union({"version": 1, "run": {"trust": "trusted", "repository": "acme/site"}}, change)
	given := exec.audit with input as question with data.ct.config as config
}

of(repository) := {"run": {"trust": "trusted", "repository": repository}}

stranger := {"run": {"trust": "untrusted", "repository": "acme/site"}}

interpreter(change, path) := found if {
	some found in settings(change).interpreters
	found.path == path
}

test_off_says_nothing_more if {
	settings({}) == {"mode": "off"}
	audit({}) == "off"
}

test_a_job_is_only_stricter if {
	settings({"exec": {"mode": "audit"}}).mode == "audit"
	settings(object.union(of("acme/strict"), {"exec": {"mode": "audit"}})).mode == "terminate"
	settings(object.union(of("acme/audited"), {"exec": {"mode": "enforce"}})).mode == "enforce"
}

test_what_is_not_understood_is_no_answer if {
	not settings({"exec": {"mode": "sometimes"}})
	not exec.settings with input as {"version": 1, "run": {"trust": "trusted"}} with data.ct.config as json.remove(config, ["general/exec"])
	not exec.settings with input as object.union(stranger, {"version": 1}) with data.ct.config as json.remove(config, ["untrusted/exec"])
}

test_strangers_get_what_both_trust if {
	settings(stranger).mode == "enforce"
	settings(stranger).trust == ["source"]
	settings({"run": {"trust": "untrusted", "repository": "acme/strict"}}).mode == "terminate"
	settings({"run": {"trust": "untrusted", "repository": "acme/strict"}}).trust == []
	settings(of("acme/strict")).trust == ["built"]
}

test_what_is_refused_is_on_record if {
	audit(of("acme/audited")) == "on"
	audit(of("acme/strict")) == "required"
	audit({"exec": {"mode": "enforce"}}) == "required"
}

test_interpreters if {
	interpreter(of("acme/strict"), "/usr/bin/python3").endings == [".py", ".pyc", ".pth"]
	interpreter(of("acme/strict"), "/bin/bash").arguments == "every"
	interpreter(of("acme/strict"), "/usr/bin/guile") == {"path": "/usr/bin/guile", "endings": [".scm"], "options": ["-c"], "arguments": "first", "inline": "allowed"}

	# Twelve of an operator's own (src/policy/data.ts) still fit into what a guest takes.
	count(exec.known) <= 20
}

test_inline if {
	interpreter(of("acme/strict"), "/usr/bin/python3").inline == "forbidden"
	interpreter(of("acme/strict"), "/usr/local/bin/python3").inline == "forbidden"
	interpreter(of("acme/strict"), "/bin/dash").inline == "allowed"
	interpreter({"run": {"trust": "untrusted", "repository": "acme/strict"}}, "/bin/dash").inline == "forbidden"
	interpreter(stranger, "/usr/bin/python3").inline == "allowed"
}

# ------------------------------------------------------------------------------------------------------------ events

denied(what, path, refused) := {
	"kind": "denied",
	"denied": {"what": what, "path": path, "refused": refused, "args": []},
	"process": {"binary": "/usr/bin/bash", "program": "step-1", "uid": 1000, "sockets": [], "connections": []},
}

findings(event, code) := decision.findings if {
	question := {"version": 1, "run": {"job": "test", "trust": "local"}, "baseline": null, "events": [event], "code": code}
	decision := detect.decision with input as question with data.ct.config as config
}

code(mode) := {"mode": mode, "trust": {"source": true, "built": true}}

test_what_nothing_vouches_for if {
	every what in ["exec", "script", "library", "mprotect"] {
		[finding] := findings(denied(what, "/workspace/x", true), code("terminate"))
		finding.rule == "ct.exec.unsigned"
		finding.action == "terminate"
		contains(finding.message, "/workspace/x")
		contains(finding.message, "tried to")
	}
}

test_modes if {
	findings(denied("exec", "/x", true), code("enforce"))[0].action == "alert"
	findings(denied("exec", "/x", false), code("audit"))[0].action == "record"
	findings(denied("exec", "/x", true), {"mode": "off"}) == []
	not contains(findings(denied("exec", "/x", false), code("audit"))[0].message, "tried")
}

test_inline_code if {
	[finding] := findings(denied("inline", "/usr/bin/python3", true), code("terminate"))
	finding.rule == "ct.exec.inline"
	finding.action == "terminate"
}

test_other_refusals_are_not_about_code if {
	every what in ["bpf", "sysctl", "socket", "ioUring"] {
		findings(denied(what, "", true), code("terminate")) == []
	}
}

test_packages if {
	event := {"kind": "packages", "packages": {"manager": "npm", "problem": "changed", "path": "package-lock.json"}}
	[finding] := findings(event, code("terminate"))
	finding.rule == "ct.exec.packages"
	finding.action == "terminate"
	findings(event, code("enforce"))[0].action == "alert"
}

test_the_hint_knows_what_is_trusted if {
	contains(findings(denied("exec", "/x", true), {"mode": "enforce", "trust": {"source": true, "built": false}})[0].hint, "trusts nothing")
	not contains(findings(denied("exec", "/x", true), code("enforce"))[0].hint, "trusts nothing")
}

test_admission_carries_the_settings if {
	admission.decision.code == {"mode": "off"} with data.ct.exec.settings as {"mode": "off"} with admission.allowed as true with admission.deny as set() with data.ct.config as config with input as {"version": 1} with admission.network as {} with admission.audit as "on"
}

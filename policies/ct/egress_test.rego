package ct.egress_test

import data.ct.egress

hosts(exact, networks) := {"exact": exact, "below": {}, "networks": networks}

config := {
	"version": 1,
	"egress": {
		"block": hosts({"blocked.example": "blocked.example"}, {"198.51": ["198.51.100.0/24"], "2001:db8": ["2001:db8:bad::/48"], "64": [], "*": []}),
		"ban": hosts({"banned.example": "banned.example"}, {}),
		"private": {
			"exact": {"intranet.example": {"networks": ["10.0.0.0/8", "64:ff9b:1::/96"], "addresses": {"127.0.0.1": true}}},
			"below": {"corp.example": {"networks": ["10.0.0.0/8"], "addresses": {}}},
			"any": {"networks": [], "addresses": {}},
		},
	},
	"general": {"ceiling": "general"},
	"profiles": {
		"exact": {"acme/own": {"ceiling": "own"}},
		"prefixes": {"acme/": {"ceiling": "acme"}, "acme/long-": {"ceiling": "own"}},
	},
	"untrusted": {"ceiling": "acme"},
	"ceilings": {
		"general": {"exact": {}, "below": {}, "any": [rule("*", 0, "tcp")], "presets": {}},
		"acme": {"exact": {"ask.example": [rule("ask.example", 443, "tls")]}, "below": {"wide.example": [rule("*.wide.example", 443, "tls")]}, "any": [], "presets": {}},
		"own": {"exact": {}, "below": {}, "any": [], "presets": {}},
	},
}

rule(host, port, protocol) := {"rule": host, "host": host, "port": port, "protocol": protocol, "addresses": "public"}

any_address(host) := object.union(rule(host, 443, "tls"), {"addresses": "any"})

allow := {
	"exact": {
		"a.example": [rule("a.example", 443, "tls"), rule("a.example", 80, "http")],
		"git.example": [rule("git.example", 22, "ssh")],
		"db.example": [rule("db.example", 5432, "tcp")],
		"192.0.2.7": [rule("192.0.2.7", 443, "tls")],
		"mirror.example": [any_address("mirror.example")],
		"intranet.example": [rule("intranet.example", 443, "tls")],
	},
	"below": {"wild.example": [rule("*.wild.example", 443, "tls")], "corp.example": [rule("*.corp.example", 443, "tls")]},
	"any": [],
}

decide(mode, request) := decision if {
	input_ := {"version": 1, "run": {"trust": "trusted", "repository": "acme/app"}, "network": {"mode": mode, "allow": allow}, "request": request}
	decision := egress.decision with input as input_ with data.ct.config as config
}

says(decision, action, name) if {
	decision.action == action
	decision.denial.rule == concat("", ["ct.egress.", name])
	not decision.allowed_by
}

connect(host, port) := {"kind": "connect", "host": host, "port": port, "literal": false}

literal(host, port) := {"kind": "connect", "host": host, "port": port, "literal": true}

dns(name) := {"kind": "dns", "name": name, "type": "A"}

address(host, address_, classes) := {
	"kind": "address", "host": host, "port": 443, "literal": false,
	"addresses": [{"address": address_, "classes": classes, "source": "resolver"}],
}

stream(host, port, said) := object.union({"kind": "stream", "host": host, "port": port, "literal": false}, said)

tls(sni) := {"protocol": "tls", "sni": sni, "ech": false}

test_allows if {
	every request in [
		dns("a.example"), dns("x.wild.example"), connect("a.example", 443), literal("192.0.2.7", 443),
		address("a.example", "192.0.2.1", []), stream("a.example", 443, tls("A.example")),
		stream("a.example", 80, {"protocol": "http", "http_host": "a.example"}),
		stream("git.example", 22, {"protocol": "ssh"}), stream("db.example", 5432, {"protocol": "unknown"}),
		address("mirror.example", "10.0.0.1", ["private"]), address("intranet.example", "10.0.0.1", ["private"]),
		address("intranet.example", "127.0.0.1", ["loopback"]), address("x.corp.example", "10.0.0.1", ["private"]),
		address("intranet.example", "10.0.0.1", ["private", "translated"]),
		address("intranet.example", "64:ff9b:1::808:808", ["translated", "unspecified"]),
		object.union(stream("192.0.2.7", 443, tls(null)), {"literal": true}),
	] {
		decision := decide("terminate", request)
		decision.action == "allow"
		decision.allowed_by
		not decision.denial
	}
}

denied := [
	["not_allowed", dns("evil-a.example")], ["not_allowed", dns("wild.example")], ["not_allowed", dns("evilwild.example")],
	["not_allowed", connect("ask.example", 443)], ["not_allowed", connect("other.example", 80)],
	["not_allowed", connect("other.example", 8080)], ["port", connect("a.example", 22)],
	["literal", literal("192.0.2.1", 443)], ["literal", literal("2001:db8::1", 443)],
	["no_address", object.union(address("a.example", "", []), {"addresses": []})],
	["sni_mismatch", stream("a.example", 443, tls("b.example"))], ["sni_missing", stream("a.example", 443, tls(null))],
	["ech", stream("a.example", 443, {"protocol": "tls", "sni": "a.example", "ech": true})],
	["host_mismatch", stream("a.example", 80, {"protocol": "http", "http_host": "b.example"})],
	["host_missing", stream("a.example", 80, {"protocol": "http", "http_host": null})],
	["protocol", stream("a.example", 443, {"protocol": "ssh"})],
]

test_denies if {
	every pair in denied {
		says(decide("enforce", pair[1]), "deny", pair[0])
	}
}

violations := [pair | some pair in denied; pair[0] != "no_address"]

test_audit_records if {
	every pair in violations {
		says(decide("audit", pair[1]), "allow", pair[0])
	}
}

test_terminate_ends if {
	every pair in violations {
		says(decide("terminate", pair[1]), "terminate", pair[0])
	}
}

test_noise_does_not_end if {
	every name in ["host", "7.2.0.192.in-addr.arpa", "printer.local"] {
		says(decide("terminate", dns(name)), "deny", "not_allowed")
	}
	says(decide("terminate", object.union(address("a.example", "", []), {"addresses": []})), "deny", "no_address")
}

test_binds_in_every_mode if {
	every pair in [
		["blocked", dns("BLOCKED.example.")], ["blocked", literal("198.51.100.1", 1)], ["blocked", literal("2001:db8:bad::1", 1)],
		["blocked", stream("a.example", 443, tls("blocked.example"))],
		["blocked", address("a.example", "198.51.100.1", [])],
		["address", address("a.example", "10.0.0.1", ["private"])], ["address", address("x.corp.example", "127.0.0.1", ["loopback"])],
		["metadata", address("mirror.example", "192.0.2.1", ["metadata"])],
		["address", address("intranet.example", "64:ff9b:1::a00:1", ["private", "translated", "unspecified"])],
		["no_way_out", {"kind": "other", "what": "udp", "address": "192.0.2.1", "port": 53}],
		["no_way_out", {"kind": "other", "what": "udp", "address": "192.0.2.1"}], ["no_way_out", {"kind": "other", "what": "raw-socket"}],
		["no_way_out", {"kind": "other", "what": "news"}],
		["forged_request", {"kind": "other", "what": "forged-request"}],
	] {
		says(decide("audit", pair[1]), "deny", pair[0])
		says(decide("terminate", pair[1]), "terminate", pair[0])
	}
}

test_ban_ends_in_every_mode if {
	every mode in ["audit", "enforce", "terminate"] {
		says(decide(mode, dns("banned.example")), "terminate", "banned")
	}
}

test_step_without_network if {
	input_ := {
		"version": 1, "run": {"trust": "trusted"}, "step": {"name": "compile", "network": false},
		"network": {"mode": "audit", "allow": allow}, "request": dns("a.example"),
	}
	says(egress.decision, "deny", "step_without_network") with input as input_ with data.ct.config as config
	open := object.union(input_, {"step": {"network": true}})
	egress.decision.action == "allow" with input as open with data.ct.config as config
}

test_operator_source if {
	request := object.union(address("a.example", "", []), {"addresses": [{"address": "127.0.0.1", "classes": ["loopback"], "source": "operator"}]})
	decide("enforce", request).action == "allow"
}

test_undefined_without_data_or_sense if {
	says(egress.decision, "deny", "undefined") with input as {"version": 1} with data.ct.config as config
	says(egress.decision, "deny", "undefined") with input as {"version": 1, "network": {"mode": "audit", "allow": allow}, "request": dns("a.example")} with data.ct.config as {}
	says(decide("off", dns("a.example")), "deny", "undefined")
	says(decide("audit", {"kind": "connect", "host": "a.example", "port": 443}), "deny", "undefined")
	says(decide("audit", object.union(address("a.example", "", []), {"addresses": [{"address": "192.0.2.1", "source": "resolver"}]})), "deny", "undefined")
}

# What operators' rules say, in whatever form, is a denial.
test_operators_deny if {
	every pair in [
		[{"rule": "acme.night", "message": "no"}, {"rule": "acme.night", "message": "no"}],
		[{"rule": "acme.night", "message": "no", "hint": "sleep"}, {"rule": "acme.night", "message": "no", "hint": "sleep"}],
		["no", {"rule": "ct.egress.deny", "message": "no"}],
		[{"message": 7}, {"rule": "ct.egress.deny", "message": "a rule of this host's policy forbids it, without saying why"}],
	] {
		denied_by({pair[0]}) == {"action": "deny", "denial": pair[1]}
	}
}

denied_by(reasons) := decision if {
	input_ := {"version": 1, "run": {}, "network": {"mode": "audit", "allow": allow}, "request": dns("a.example")}
	decision := egress.decision with egress.deny as reasons with input as input_ with data.ct.config as config
}

test_operators_terminate if {
	input_ := {"version": 1, "run": {}, "network": {"mode": "audit", "allow": allow}, "request": dns("a.example")}
	reasons := {{"rule": "acme.a", "message": "a"}, {"rule": "acme.b", "message": "b", "terminate": true}}
	egress.decision == {"action": "terminate", "denial": {"rule": "acme.b", "message": "b"}} with egress.deny as reasons with input as input_ with data.ct.config as config
}

# The hint is the line for the job file exactly if policy lets the job ask for it.
test_hints if {
	startswith(decide("enforce", connect("ask.example", 443)).denial.hint, "add `https://ask.example`")
	startswith(decide("enforce", dns("ask.example")).denial.hint, "add `ask.example`")
	startswith(decide("enforce", connect("x.wide.example", 443)).denial.hint, "add `https://x.wide.example`")
	contains(decide("enforce", connect("no.example", 22)).denial.hint, "`ssh://no.example`")
	contains(decide("enforce", literal("2001:db8::1", 99)).denial.hint, "`tcp://[2001:db8::1]:99`")
	contains(decide("enforce", dns("single")).denial.hint, "`https://single`")
	every repository in ["acme/own", "acme/long-name"] {
		input_ := {"version": 1, "run": {"trust": "trusted", "repository": repository}, "network": {"mode": "enforce", "allow": allow}, "request": dns("ask.example")}
		startswith(egress.decision.denial.hint, "policy does not let") with input as input_ with data.ct.config as config
	}
	elsewhere := {"version": 1, "run": {"trust": "trusted"}, "network": {"mode": "enforce", "allow": allow}, "request": dns("ask.example")}
	startswith(egress.decision.denial.hint, "add") with input as elsewhere with data.ct.config as config
	stranger := object.union(elsewhere, {"run": {"trust": "untrusted"}})
	startswith(egress.decision.denial.hint, "add") with input as stranger with data.ct.config as config
}

package ct.admission_test

import data.ct.admission

names(list) := {"any": false, "exact": {name: true | some name in list}, "prefixes": []}

everything := {"any": true, "exact": {}, "prefixes": []}

rule(host, port, protocol) := {"rule": host, "host": host, "port": port, "protocol": protocol, "addresses": "public"}

preset(name) := {"rule": name, "host": "registry.example", "port": 443, "protocol": "tls", "addresses": "any"}

ceiling(exact, below, any, presets) := {"exact": exact, "below": below, "any": any, "presets": presets}

general := {
	"mode": "audit", "audit": "on", "exec": {"mode": "off", "trust": {"source": true, "built": true}, "inline": {}}, "ceiling": "general", "always": [rule("always.example", 443, "tls")],
	"trust": {"local": true, "trusted": true, "untrusted": true}, "refs": {"any": false, "exact": {}, "prefixes": ["refs/heads/"]},
	"actors": names(["alice"]), "images": names(["debian", "node", "sha256:1"]),
	"limits": {"cpus": 4, "memory_mib": 4096, "disk_mib": 4096, "timeout_seconds": 3600}, "secrets": [],
}

grant(name, prefix) := {"name": name, "prefix": prefix, "trust": {"trusted": true}, "repositories": everything, "refs": names(["refs/heads/main"])}

config := {
	"version": 1,
	"egress": {
		"block": {"exact": {"blocked.example": "blocked.example"}, "below": {"blocked.example": "*.blocked.example"}, "networks": {}},
		"ban": {"exact": {"192.0.2.66": "192.0.2.66"}, "below": {}, "networks": {"198.51": ["198.51.100.0/24"]}},
	},
	"repositories": {"any": false, "exact": {"other/site": true}, "prefixes": ["acme/"]},
	"secrets": [grant("TOKEN", false), grant("TEST_", true)],
	"interpreters": {},
	"general": general,
	"profiles": {
		"exact": {"acme/site": object.union(general, {"mode": "enforce", "ceiling": "everything", "secrets": [grant("OWN", false)]})},
		"prefixes": {"acme/infra-": object.union(general, {"actors": everything, "audit": "off"})},
	},
	"untrusted": {"mode": "terminate", "audit": "required", "exec": {"mode": "off", "trust": {}, "inline": {}}, "ceiling": "untrusted", "images": names(["node"]), "limits": {"cpus": 2, "memory_mib": 8192, "disk_mib": 4096, "timeout_seconds": 3600}},
	"ceilings": {
		"general": ceiling(
			{"a.example": [rule("a.example", 443, "tls"), rule("a.example", 80, "http")], "db.example": [rule("db.example", 5432, "tcp")]},
			{"wide.example": [rule("*.wide.example", 443, "tls")]}, [], {"npm": true},
		),
		"untrusted": ceiling({}, {}, [], {"npm": true}),
		"everything": ceiling({}, {}, [rule("*", 0, "tcp")], {}),
	},
}

question := {
	"version": 1,
	"run": {"job": "test", "trust": "trusted", "repository": "acme/app", "ref": "refs/heads/main", "actor": "Alice"},
	"image": {"name": "debian", "digest": "sha256:0"},
	"resources": {"cpus": 2, "memory_mib": 2048, "disk_mib": 2048, "timeout_seconds": 600},
	"secrets": [],
	"network": {"ask": []},
}

decide(change) := decision if {
	decision := admission.decision with input as object.union(question, change) with data.ct.config as config
}

rules(change) := {denial.rule | some denial in decide(change).denials}

allows(change) if {
	decision := decide(change)
	decision.allow == true
	decision.denials == []
}

refuses(change, wanted) if {
	decide(change).allow == false
	rules(change) == {concat("", ["ct.admission.", name]) | some name in wanted}
	every denial in decide(change).denials {
		denial.message != ""
	}
}

asks(list) := {"network": {"ask": list}}

test_gets_what_everybody_gets if {
	decide({}) == {"allow": true, "denials": [], "network": {"mode": "audit", "allow": [rule("always.example", 443, "tls")]}, "audit": "on", "code": {"mode": "off"}}
}

test_asks_in_order_and_once if {
	asked := [preset("npm"), rule("always.example", 443, "tls"), rule("a.example", 80, "http")]
	site := object.union(asks(asked), {"run": {"repository": "acme/site"}})
	decide(site).network.allow == asked
}

test_within_the_ceiling if {
	every asked in [rule("a.example", 443, "tls"), rule("db.example", 5432, "ssh"), rule("x.wide.example", 443, "tls"), rule("*.wide.example", 443, "tls"), rule("*.x.wide.example", 443, "tls"), preset("npm")] {
		allows(asks([asked]))
	}
}

test_beyond_the_ceiling if {
	every asked in [
		rule("b.example", 443, "tls"), rule("*.a.example", 443, "tls"), rule("*.example", 443, "tls"), rule("wide.example", 443, "tls"),
		rule("evilwide.example", 443, "tls"), rule("a.example", 444, "tls"), rule("a.example", 443, "tcp"), preset("pypi"),
		object.union(preset("pypi"), {"host": "a.example"}),
	] {
		refuses(asks([asked]), {"network"})
	}
}

test_forbidden if {
	every host in ["blocked.example", "*.blocked.example", "192.0.2.66", "198.51.100.7"] {
		refuses(object.union(asks([rule(host, 443, "tls")]), {"run": {"repository": "acme/site"}}), {"network_forbidden"})
	}
}

test_mode_is_the_strictest if {
	decide({"network": {"mode": "terminate"}}).network.mode == "terminate"
	decide({"network": {"mode": "audit"}, "run": {"repository": "acme/site"}}).network.mode == "enforce"
	decide({"network": {"mode": "audit"}, "run": {"trust": "untrusted"}, "image": {"name": "node"}}).network.mode == "terminate"
}

test_audit_is_the_strictest if {
	decide({"run": {"repository": "acme/site"}}).audit == "on"
	decide({"run": {"repository": "acme/infra-x"}}).audit == "off"
	decide({"run": {"trust": "untrusted"}, "image": {"name": "node"}}).audit == "required"
}

test_nothing_runs_where_policy_does_not_say_whether_it_is_on_record if {
	decision := admission.decision with input as question with data.ct.config as json.remove(config, ["general/audit"])
	decision.allow == false
}

test_origin if {
	refuses({"run": {"repository": "x/y"}}, {"repository"})
	refuses({"run": {"ref": "main"}}, {"ref"})
	refuses({"run": {"actor": "mallory"}}, {"actor"})
	refuses({"run": {"trust": "friend"}}, {"trust"})
	allows({"run": {"repository": "acme/infra-1", "actor": "mallory"}})
	unknown := object.remove(question, ["run"])
	decision := admission.decision with input as object.union(unknown, {"run": {"trust": "trusted"}}) with data.ct.config as config
	{denial.rule | some denial in decision.denials} == {"ct.admission.repository", "ct.admission.ref", "ct.admission.actor"}
}

test_image if {
	allows({"image": {"name": "x", "digest": "sha256:1"}})
	refuses({"image": {"name": "x"}}, {"image"})
	refuses({"run": {"trust": "untrusted"}}, {"image"})
}

test_limits if {
	refuses({"resources": {"cpus": 5, "memory_mib": 4097, "disk_mib": 4097, "timeout_seconds": 3601}}, {"cpus", "memory", "disk", "timeout"})
	refuses({"run": {"trust": "untrusted"}, "image": {"name": "node"}, "resources": {"cpus": 3}}, {"cpus"})
	refuses({"run": {"trust": "untrusted"}, "image": {"name": "node"}, "resources": {"memory_mib": 5000}}, {"memory"})
	refuses({"resources": {"cpus": null}}, {"cpus"})
}

# The key of ct.yml, which is not that of the policy.
test_limit_hints if {
	decision := admission.decision with input as json.patch(question, [{"op": "replace", "path": "/resources/cpus", "value": 5}]) with data.ct.config as config
	some denial in decision.denials
	startswith(denial.hint, "ask for less in `resources: cpu` of ct.yml")
}

hints(change) := {denial.rule: denial.hint | some denial in decide_own(change).denials}

decide_own(change) := decision if {
	own := object.union(config, {"profiles": {"exact": {"acme/site": {
		"limits": {"cpus": 1},
		"keys": {"refs": "admission: refs", "actors": "repositories: acme/site: actors", "images": "repositories: acme/site: images", "limits": "repositories: acme/site: limits"},
	}}}})
	decision := admission.decision with input as object.union(question, object.union({"run": {"repository": "acme/site"}}, change)) with data.ct.config as own
}

test_hints_name_the_key_where_it_is_written if {
	found := hints({"run": {"actor": "mallory"}, "image": {"name": "x"}})
	contains(found["ct.admission.actor"], "`repositories: acme/site: actors`")
	contains(found["ct.admission.image"], "`repositories: acme/site: images`")
	contains(found["ct.admission.cpus"], "`repositories: acme/site: limits`")
	some denial in decide({"run": {"trust": "untrusted"}}).denials
	contains(denial.hint, "`untrusted: images`")
	some less in decide({"run": {"trust": "untrusted"}, "image": {"name": "node"}, "resources": {"cpus": 3}}).denials
	contains(less.hint, "`untrusted: limits`")
}

test_limit_that_nobody_set if {
	broken := json.remove(config, ["general/limits/cpus"])
	decision := admission.decision with input as question with data.ct.config as broken
	decision.allow == false
	{denial.rule | some denial in decision.denials} == {"ct.admission.cpus"}
}

test_secrets if {
	allows({"secrets": ["TOKEN", "TEST_X"]})
	allows({"secrets": ["OWN"], "run": {"repository": "acme/site"}})
	refuses({"secrets": ["OWN"]}, {"secret"})
	refuses({"secrets": ["TOKEN"], "run": {"ref": "refs/heads/x"}}, {"secret"})
	refuses({"secrets": ["TOKEN"], "run": {"trust": "local"}}, {"secret"})
	count(decide({"secrets": ["A", "B"]}).denials) == 2
}

test_strangers if {
	stranger := {"run": {"trust": "untrusted"}, "image": {"name": "node"}}
	allows(object.union(stranger, asks([preset("npm")])))
	refuses(object.union(stranger, asks([rule("a.example", 443, "tls")])), {"network"})
	refuses(object.union(stranger, {"secrets": ["TOKEN"]}), {"secret"})
	decision := admission.decision with input as object.union(question, stranger) with data.ct.config as json.remove(config, ["untrusted"])
	decision.allow == false
}

test_operators_deny if {
	decision := admission.decision with input as question with data.ct.config as config with admission.deny as {{"rule": "acme.night", "message": "sleep"}, "no"}
	decision.allow == false
	decision.denials == [{"rule": "acme.night", "message": "sleep"}, {"rule": "ct.admission.deny", "message": "no"}]
}

test_undefined_without_data if {
	refused := admission.decision with input as question with data.ct.config as {}
	refused.denials[0].rule == "ct.admission.undefined"
	other := admission.decision with input as object.union(question, {"version": 2}) with data.ct.config as config
	other.denials[0].rule == "ct.admission.undefined"
}

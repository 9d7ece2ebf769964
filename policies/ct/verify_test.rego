package ct.verify_test

import data.ct.verify

anybody := {"any": true, "exact": {}, "prefixes": []}

only(name) := {"any": false, "exact": {name: true}, "prefixes": []}

lax := {
	"commit": false, "commit_signers": anybody,
	"scripts": [], "script_signers": anybody, "cover": [],
	"dependencies": "none", "publishers": anybody,
}

config(general) := {
	"version": 1,
	"general": {"verify": general},
	"profiles": {"exact": {}, "prefixes": {}},
	"verify": {"registries": {"npm": {"https://registry.example": true}, "pypi": {}}},
	"untrusted": {"verify": lax},
}

ask := {"commit": false, "scripts": [], "dependencies": "none"}

evidence := {"commit": null, "scripts": [], "dependencies": []}

run := {"trust": "trusted", "job": "build", "repository": "acme/site"}

asked(wanted, facts) := {"version": 1, "run": run, "ask": object.union(ask, wanted), "evidence": facts}

decide(general, wanted, facts) := d if {
	d := verify.decision with input as asked(wanted, facts) with data.ct.config as config(general)
}

codes(decision) := [denial.code | some denial in decision.denials]

commit := {
	"id": "0123456789abcdef", "is_claimed": true, "problem": null, "dirty": [],
	"signers": [{"signer": "people", "who": "a@example.org"}],
}

manifest := {
	"manifest": "ct.signed.json", "problem": null, "files": {"ci/deploy.sh": true}, "directories": ["scripts"],
	"signers": [{"signer": "release", "who": "release"}],
}

lock := {
	"lock": "package-lock.json", "kind": "npm", "packages": 2, "problem": null, "unhashed": [],
	"origins": ["https://registry.example"], "configured": [], "unsigned": [], "publishers": [["ci"]],
	"unproven": [], "invalid": [],
}

test_nothing_is_demanded_by_default if {
	decide(lax, {}, null) == {"demands": ask, "allow": true, "denials": []}
}

test_policy_demands_and_the_job_adds if {
	rules := object.union(lax, {"commit": true, "scripts": ["b.json"], "dependencies": "signature"})
	d := decide(rules, {"scripts": ["a.json"], "dependencies": "integrity"}, null)
	d.demands == {"commit": true, "scripts": ["a.json", "b.json"], "dependencies": "signature"}
	decide(lax, {"commit": true, "dependencies": "provenance"}, null).demands == {"commit": true, "scripts": [], "dependencies": "provenance"}
}

test_strangers_have_to_meet_both if {
	c := object.union(config(lax), {"untrusted": {"verify": object.union(lax, {"commit": true})}})
	stranger := object.union(asked({}, null), {"run": {"trust": "untrusted", "job": "x"}})
	d := verify.decision with input as stranger with data.ct.config as c
	d.demands.commit
	trusted := verify.decision with input as asked({}, null) with data.ct.config as c
	not trusted.demands.commit
}

test_rules_that_are_missing_let_nothing_through if {
	c := object.remove(config(lax), ["untrusted"])
	stranger := object.union(asked({}, null), {"run": {"trust": "untrusted", "job": "x"}})
	d := verify.decision with input as stranger with data.ct.config as c
	not d.allow
	e := verify.decision with input as asked({}, null) with data.ct.config as object.union(config(lax), {"general": {"verify": {"commit": "yes"}}})
	not e.allow
	every key in object.keys(lax) {
		partial := verify.decision with input as asked({"commit": true, "scripts": ["ct.signed.json"], "dependencies": "provenance"}, {"commit": commit, "scripts": [manifest], "dependencies": [lock]})
			with data.ct.config as json.remove(config(lax), [concat("/", ["general/verify", key])])
		not partial.allow
	}
}

test_a_signed_commit_passes if {
	decide(lax, {"commit": true}, object.union(evidence, {"commit": commit})).allow
}

test_a_commit_is_refused if {
	decide(lax, {"commit": true}, evidence).denials[0].code == "VERIFY_EVIDENCE_MISSING"
	unsigned := object.union(commit, {"signers": [], "problem": {"code": "VERIFY_COMMIT_UNSIGNED", "message": "no"}})
	codes(decide(lax, {"commit": true}, object.union(evidence, {"commit": unsigned}))) == ["VERIFY_COMMIT_UNSIGNED"]
	dirty := object.union(commit, {"dirty": ["a.txt"]})
	codes(decide(lax, {"commit": true}, object.union(evidence, {"commit": dirty}))) == ["VERIFY_TREE_DIRTY"]
	other := object.union(commit, {"is_claimed": false})
	codes(decide(lax, {"commit": true}, object.union(evidence, {"commit": other}))) == ["VERIFY_COMMIT_INVALID"]
	rules := object.union(lax, {"commit_signers": only("others")})
	codes(decide(rules, {"commit": true}, object.union(evidence, {"commit": commit}))) == ["VERIFY_COMMIT_UNTRUSTED"]
}

test_every_fact_about_a_commit_is_needed if {
	every key in ["is_claimed", "signers", "dirty"] {
		facts := object.union(evidence, {"commit": object.remove(commit, [key])})
		not decide(lax, {"commit": true}, facts).allow
	}
}

test_a_manifest_passes_and_covers if {
	rules := object.union(lax, {"scripts": ["ct.signed.json"], "cover": ["scripts", "scripts/a/b.sh", "ci/deploy.sh"], "script_signers": only("release")})
	decide(rules, {}, object.union(evidence, {"scripts": [manifest]})).allow
}

test_a_manifest_is_refused if {
	wanted := {"scripts": ["ct.signed.json"]}
	codes(decide(lax, wanted, evidence)) == ["VERIFY_EVIDENCE_MISSING"]
	broken := object.union(manifest, {"signers": [], "problem": {"code": "SIGNATURE_INVALID", "message": "no"}})
	codes(decide(lax, wanted, object.union(evidence, {"scripts": [broken]})))[0] == "SIGNATURE_INVALID"
	others := object.union(lax, {"script_signers": only("others")})
	codes(decide(others, wanted, object.union(evidence, {"scripts": [manifest]}))) == ["SIGNATURE_UNTRUSTED"]
	every path in ["scripts2", "scripts2/x", "ci", "ci/deploy.sh.bak"] {
		more := object.union(lax, {"cover": [path]})
		codes(decide(more, wanted, object.union(evidence, {"scripts": [manifest]}))) == ["VERIFY_EVIDENCE_MISSING"]
	}
}

test_covering_by_somebody_else_does_not_count if {
	rules := object.union(lax, {"scripts": ["ct.signed.json"], "cover": ["scripts"], "script_signers": only("release")})
	stranger := object.union(manifest, {"signers": [{"signer": "other", "who": "x"}]})
	not decide(rules, {}, object.union(evidence, {"scripts": [stranger]})).allow
}

test_dependencies_pass if {
	every level in ["integrity", "signature", "provenance"] {
		decide(lax, {"dependencies": level}, object.union(evidence, {"dependencies": [lock]})).allow
	}
}

test_dependencies_are_refused if {
	codes(decide(lax, {"dependencies": "integrity"}, evidence)) == ["VERIFY_EVIDENCE_MISSING"]
	every change in [
		["integrity", {"unhashed": ["a@1"]}, "VERIFY_DEPENDENCY_INTEGRITY"],
		["integrity", {"origins": ["https://elsewhere.example"]}, "VERIFY_DEPENDENCY_INTEGRITY"],
		["signature", {"unsigned": ["a@1"]}, "VERIFY_DEPENDENCY_UNSIGNED"],
		["signature", {"invalid": ["a@1"]}, "VERIFY_DEPENDENCY_INVALID"],
		["provenance", {"unproven": ["a@1"]}, "VERIFY_DEPENDENCY_UNPROVEN"],
		["signature", {"kind": "pypi", "origins": [], "unproven": ["a@1"]}, "VERIFY_DEPENDENCY_UNPROVEN"],
	] {
		facts := object.union(evidence, {"dependencies": [object.union(lock, change[1])]})
		codes(decide(lax, {"dependencies": change[0]}, facts)) == [change[2]]
	}
	rules := object.union(lax, {"publishers": only("others")})
	codes(decide(rules, {"dependencies": "provenance"}, object.union(evidence, {"dependencies": [lock]}))) == ["VERIFY_DEPENDENCY_UNPROVEN"]
}

test_every_fact_about_dependencies_is_needed if {
	every key in ["problem", "unhashed", "origins", "unsigned", "publishers", "unproven", "invalid", "kind"] {
		facts := object.union(evidence, {"dependencies": [object.remove(lock, [key])]})
		not decide(lax, {"dependencies": "provenance"}, facts).allow
	}
}

test_where_no_registry_is_named_that_of_the_machine_counts if {
	python := object.union(lock, {"kind": "pypi", "origins": ["https://pypi.example"], "configured": ["https://pypi.example"]})
	decide(lax, {"dependencies": "integrity"}, object.union(evidence, {"dependencies": [python]})).allow
	npm := object.union(lock, {"origins": ["https://machine.example"], "configured": ["https://machine.example"]})
	not decide(lax, {"dependencies": "integrity"}, object.union(evidence, {"dependencies": [npm]})).allow
}

test_rules_of_operators_only_add if {
	d := verify.decision with input as asked({}, null) with data.ct.config as config(lax) with data.ct.verify.deny as {"no"}
	not d.allow
	d.denials[0].rule == "ct.verify.deny"
}

test_cover_without_any_manifest_is_refused_at_once if {
	rules := object.union(lax, {"cover": ["ci"]})
	d := decide(rules, {}, null)
	d.allow == false
	d.demands.scripts == []
	[denial.rule | some denial in d.denials] == ["ct.verify.cover"]
	decide(rules, {"scripts": ["ct.signed.json"]}, null).allow == true
}

test_whoever_is_not_known_is_a_stranger if {
	strict := {"untrusted": {"verify": object.union(lax, {"commit": true})}}
	every trust in [null, "", "Trusted", ["trusted"]] {
		question := object.union(asked({}, null), {"run": {"trust": trust}})
		d := verify.decision with input as question with data.ct.config as object.union(config(lax), strict)
		d.demands.commit == true
	}
	nobody := object.union(object.remove(asked({}, null), ["run"]), {"run": {"job": "build"}})
	d := verify.decision with input as nobody with data.ct.config as object.union(config(lax), strict)
	d.demands.commit == true
	decide(lax, {}, null).demands.commit == false
}

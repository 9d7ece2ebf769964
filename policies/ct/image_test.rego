package ct.image_test

import data.ct.image

everything := {"any": true, "exact": {}, "prefixes": []}

names(list) := {"any": false, "exact": {name: true | some name in list}, "prefixes": []}

shipped := {
	"local": true, "signers": everything, "max_age_seconds": null, "minimum": {}, "base": everything,
	"attestations": [], "builders": everything, "scan": null,
}

strict := object.union(shipped, {
	"local": false, "signers": names(["release"]), "max_age_seconds": 1000, "minimum": {"debian": 5000},
	"base": names(["bookworm"]), "attestations": ["provenance", "sbom"], "builders": names(["https://builder.example/1"]),
	"scan": {"max_age_seconds": 500, "failing": ["critical", "high"]},
})

config(general) := {
	"version": 1,
	"image": {"revoked": {"sha256:bad": true}, "running": "finish"},
	"general": {"image": general},
	"profiles": {"exact": {"acme/site": {"image": strict}}, "prefixes": {}},
	"untrusted": {"image": strict},
}

built := {
	"version": 1, "now": 6000, "run": {"job": "test", "trust": "trusted"},
	"image": {"name": "debian", "digest": "sha256:1", "made": {"how": "built", "at": 5900}, "base": ["bookworm"], "lock": null, "unlocked": false},
	"signatures": [], "attestations": [], "scan": null,
	"refusal": {"code": "SIGNATURE_MISSING", "message": "there is no signature"},
}

signature := {"signer": "release", "kind": "key", "subject": null, "issuer": null, "at": 5500, "witnessed": true}

scan := {
	"detector": "database", "scanned_at": 5990, "as_of": 5800, "revision": "sha256:r",
	"counts": {"critical": 0, "high": 0, "medium": 2, "unknown": 0, "low": 0, "negligible": 0},
	"worst": "medium", "accepted": 0, "fixable": 0, "unexamined": 0,
}

signed := object.union(built, {
	"image": {"made": null},
	"signatures": [signature], "refusal": null, "scan": scan,
	"attestations": [
		{"kind": "provenance", "signer": "release", "builder": "https://builder.example/1"},
		{"kind": "sbom", "signer": "release", "builder": null},
	],
})

ask(question, rules) := decision if {
	decision := image.decision with input as question with data.ct.config as config(rules)
}

rules_of(decision) := {denial.rule | some denial in decision.denials}

test_local_image_runs_unsigned if {
	decision := ask(built, shipped)
	decision.allow == true
	decision.notices == []
}

test_local_image_needs_a_signature_where_policy_wants_one if {
	rules_of(ask(built, object.union(shipped, {"local": false}))) == {"ct.image.local"}
}

test_image_from_elsewhere_needs_a_signature if {
	foreign := object.union(built, {"image": {"made": null}})
	rules_of(ask(foreign, shipped)) == {"ct.image.signature"}
	marked := object.union(built, {"image": {"made": {"how": "pulled", "at": 1}}})
	rules_of(ask(marked, shipped)) == {"ct.image.signature"}
}

test_signed_image_meets_every_rule if {
	decision := ask(signed, strict)
	decision.allow == true
	decision.notices == []
}

test_signer_that_may_not_sign_for_the_job if {
	other := object.union(signed, {"signatures": [object.union(signature, {"signer": "somebody"})]})
	"ct.image.signature" in rules_of(ask(other, strict))
}

broken := {
	"ct.image.revoked": {"image": {"digest": "sha256:bad"}},
	"ct.image.age": {"now": 6501, "scan": {"as_of": 6400}},
	"ct.image.replayed": {"signatures": [object.union(signature, {"at": 4999})], "now": 5900},
	"ct.image.base": {"image": {"base": ["trixie"]}},
	"ct.image.attestation": {"attestations": [{"kind": "provenance", "signer": "release", "builder": "https://builder.example/1"}]},
	"ct.image.builder": {"attestations": [
		{"kind": "provenance", "signer": "release", "builder": "https://builder.example/2"},
		{"kind": "sbom", "signer": "release", "builder": null},
	]},
	"ct.image.scan_missing": {"scan": null},
	"ct.image.scan_stale": {"scan": {"as_of": 5499}},
	"ct.image.vulnerable": {"scan": {"counts": {"high": 1}}},
}

test_each_rule_is_broken_alone if {
	every rule, change in broken {
		rules_of(ask(object.union(signed, change), strict)) == {rule}
	}
}

test_attestations_of_others_do_not_count if {
	theirs := [object.union(attestation, {"signer": "somebody"}) | some attestation in signed.attestations]
	rules_of(ask(object.union(signed, {"attestations": theirs}), strict)) == {"ct.image.attestation", "ct.image.builder"}
}

test_age_without_a_time_is_too_old if {
	timeless := object.union(signed, {"signatures": [object.union(signature, {"at": null})]})
	rules_of(ask(timeless, strict)) == {"ct.image.age", "ct.image.replayed"}
}

test_revoked_image_does_not_run_even_if_it_is_local if {
	rules_of(ask(object.union(built, {"image": {"digest": "sha256:bad"}}), shipped)) == {"ct.image.revoked"}
}

test_strangers_meet_both_sets_of_rules if {
	stranger := object.union(built, {"run": {"trust": "untrusted"}})
	"ct.image.local" in rules_of(ask(stranger, shipped))
	ask(object.union(signed, {"run": {"trust": "untrusted"}}), shipped).allow == true
}

test_repository_has_rules_of_its_own if {
	"ct.image.local" in rules_of(ask(object.union(built, {"run": {"repository": "acme/site"}}), shipped))
}

test_scan_counts_what_is_not_a_number_as_too_many if {
	odd := object.union(signed, {"scan": {"counts": {"high": null}}})
	ask(odd, strict).allow == false
}

test_nothing_is_allowed_without_data if {
	decision := image.decision with input as signed with data.ct.config as {"version": 1}
	decision.allow == false
}

test_rules_of_operators_deny if {
	denied := image.decision with input as signed with data.ct.config as config(strict) with image.deny as {"no"}
	rules_of(denied) == {"ct.image.deny"}
}

test_unlocked_image_is_told if {
	decision := ask(object.union(built, {"image": {"unlocked": true}}), shipped)
	count(decision.notices) == 1
}

test_whoever_is_not_known_is_a_stranger if {
	ask(built, shipped).allow == true
	every trust in [null, "", "Trusted"] {
		question := object.union(built, {"run": {"trust": trust}})
		ask(question, shipped).allow == false
	}
	ask(object.union(object.remove(built, ["run"]), {"run": {"job": "test"}}), shipped).allow == false
}

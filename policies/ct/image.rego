# May this image boot? Asked with what was proved of it, for every run. docs/policy.md describes input and answer.
#
# Operators add `deny` rules of their own to this package; nothing overrides them.
package ct.image

import data.ct.lib

default decision := {
	"allow": false,
	"denials": [{
		"rule": "ct.image.undefined",
		"message": "policy gives no answer about this image",
		"hint": "this is a fault of the policy of this host: ask those who run it",
	}],
	"notices": [],
}

decision := {"allow": true, "denials": [], "notices": sort(notices)} if {
	lib.ready
	allowed
	count(deny) == 0
}

decision := {
	"allow": false,
	"denials": [denial | some [_, _, denial] in sort(told)],
	"notices": [],
} if {
	lib.ready
	count(deny) > 0
}

told contains [denial.rule, denial.message, denial] if {
	some reason in deny
	denial := lib.denial_of(reason, "ct.image.deny")
}

# Every condition, one by one, in the positive: what is undefined allows nothing.
allowed if {
	not_revoked
	count(rule_sets) > 0
	every rules in rule_sets {
		vouched_for(rules)
		young(rules)
		not_replayed(rules)
		based(rules)
		attested(rules)
		built_by(rules)
		scanned(rules)
		fresh(rules)
		clean(rules)
	}
}

image := input.image

# Those of the repository, and for strangers' jobs those of `untrusted`, too: all of them have to be met.
rule_sets contains lib.profile.image

rule_sets contains lib.config.untrusted.image if lib.stranger

# One that is missing for strangers' jobs lets nothing through.
rule_sets contains {} if {
	lib.stranger
	not lib.config.untrusted.image
}

# ------------------------------------------------------------------------------------------------------- revoked

not_revoked if {
	lib.config.image.revoked
	not lib.config.image.revoked[image.digest]
	is_string(image.digest)
}

deny contains {
	"rule": "ct.image.revoked",
	"message": concat("", ["the image `", name, "` (", lib.word(image.digest), ") was revoked"]),
	"hint": "build or pull a newer one",
} if {
	lib.config.image.revoked[image.digest]
}

# ------------------------------------------------------------------------------------------------- who vouches for it

vouched_for(rules) if count(accepted(rules)) > 0

vouched_for(rules) if trusted_as_local(rules)

accepted(rules) := [signature |
	some signature in input.signatures
	lib.matches(rules.signers, signature.signer)
]

is_local if image.made.how in {"built", "imported"}

needs_evidence(rules) if not trusted_as_local(rules)

trusted_as_local(rules) if {
	is_local
	rules.local == true
}

deny contains {
	"rule": "ct.image.signature",
	"message": concat("", ["the image `", name, "` was not made on this machine, and no signature of it is accepted: ", why]),
	"hint": "sign it (`ct image sign`), or ask those who run this host to add the signer to `image: signers` of their policy",
} if {
	not is_local
	some rules in rule_sets
	not vouched_for(rules)
}

deny contains {
	"rule": "ct.image.local",
	"message": concat("", ["the image `", name, "` was made on this machine, and policy wants a signature: ", why]),
	"hint": "pull a signed one, or sign it (`ct image sign`) with a key that `image: signers` of the policy names",
} if {
	is_local
	some rules in rule_sets
	not vouched_for(rules)
}

why := input.refusal.message if is_string(input.refusal.message)

why := "its signer may not sign for this job" if {
	not is_string(object.get(input, ["refusal", "message"], null))
	count(input.signatures) > 0
}

why := "it has none" if {
	not is_string(object.get(input, ["refusal", "message"], null))
	not count(input.signatures) > 0
}

# For whoever started the job. Where the image was made, and who signed it, every run is told anyway.
notices contains concat("", ["image ", name, " holds other packages than its lock: that could not be met"]) if {
	image.unlocked == true
}

# ----------------------------------------------------------------------------------------------------------- age

# When the newest accepted signature was made: by those who saw it, else by what its signer says.
issued(rules) := max([at | some signature in accepted(rules); at := signature.at; is_number(at)])

issued(rules) := image.made.at if {
	count([at | some signature in accepted(rules); at := signature.at; is_number(at)]) == 0
	trusted_as_local(rules)
	is_number(image.made.at)
}

young(rules) if rules.max_age_seconds == null

young(rules) if {
	is_number(rules.max_age_seconds)
	is_number(input.now)
	input.now - issued(rules) <= rules.max_age_seconds
}

deny contains {
	"rule": "ct.image.age",
	"message": concat("", ["the image `", name, "` is older than policy allows, or nothing says how old it is"]),
	"hint": "build and sign it again: `image: max-age` of the policy says how old it may be",
} if {
	some rules in rule_sets
	vouched_for(rules)
	not young(rules)
}

not_replayed(rules) if trusted_as_local(rules)

not_replayed(rules) if {
	rules.minimum
	not minimum_of(rules)
}

not_replayed(rules) if issued(rules) >= minimum_of(rules)

minimum_of(rules) := rules.minimum[image.name]

deny contains {
	"rule": "ct.image.replayed",
	"message": concat("", ["the image `", name, "` was signed before the oldest one that policy still lets run, or nothing says when"]),
	"hint": "somebody may have put an old image in place of a newer one; `image: minimum` of the policy has the time",
} if {
	some rules in rule_sets
	vouched_for(rules)
	not not_replayed(rules)
}

# ---------------------------------------------------------------------------------------------------------- base

based(rules) if rules.base.any == true

based(rules) if {
	some base in image.base
	lib.matches(rules.base, base)
}

deny contains {
	"rule": "ct.image.base",
	"message": concat("", ["the image `", name, "` is not based on one that policy names"]),
	"hint": "choose another base (`extends`), or ask those who run this host about `image: base` of their policy",
} if {
	some rules in rule_sets
	not based(rules)
}

# --------------------------------------------------------------------------------------------------- attestations

attested(rules) if trusted_as_local(rules)

attested(rules) if {
	is_array(rules.attestations)
	every kind in rules.attestations {
		count(attestations(rules, kind)) > 0
	}
}

# Of signers that may sign the image, too.
attestations(rules, kind) := [attestation |
	some attestation in input.attestations
	attestation.kind == kind
	lib.matches(rules.signers, attestation.signer)
]

deny contains {
	"rule": "ct.image.attestation",
	"message": concat("", ["the image `", name, "` lacks a signed attestation that policy demands: ", kind]),
	"hint": "`ct image sign` makes them with the signature; push and pull take them along",
} if {
	some rules in rule_sets
	needs_evidence(rules)
	some kind in rules.attestations
	count(attestations(rules, kind)) == 0
}

built_by(rules) if trusted_as_local(rules)

built_by(rules) if rules.builders.any == true

built_by(rules) if {
	some attestation in attestations(rules, "provenance")
	lib.matches(rules.builders, attestation.builder)
}

deny contains {
	"rule": "ct.image.builder",
	"message": concat("", ["the image `", name, "` has no signed provenance of a builder that policy names"]),
	"hint": "ask those who run this host about `image: builders` of their policy",
} if {
	some rules in rule_sets
	not built_by(rules)
}

# ------------------------------------------------------------------------------------------------- vulnerabilities

scanned(rules) if rules.scan == null

scanned(rules) if {
	is_object(rules.scan)
	is_object(input.scan)
}

deny contains {
	"rule": "ct.image.scan_missing",
	"message": concat("", ["the image `", name, "` was never scanned for vulnerabilities, which policy demands"]),
	"hint": concat("", ["run: ct image scan ", name]),
} if {
	some rules in rule_sets
	not scanned(rules)
}

fresh(rules) if rules.scan == null

fresh(rules) if {
	is_number(input.now)
	is_number(input.scan.as_of)
	is_number(rules.scan.max_age_seconds)
	input.now - input.scan.as_of <= rules.scan.max_age_seconds
}

deny contains {
	"rule": "ct.image.scan_stale",
	"message": concat("", ["what is known of vulnerabilities in the image `", name, "` is too old for policy"]),
	"hint": concat("", ["run: ct vuln db update && ct image scan ", name]),
} if {
	some rules in rule_sets
	scanned(rules)
	not fresh(rules)
}

clean(rules) if rules.scan == null

clean(rules) if {
	is_array(rules.scan.failing)
	every severity in rules.scan.failing {
		input.scan.counts[severity] == 0
	}
}

deny contains {
	"rule": "ct.image.vulnerable",
	"message": concat("", ["the image `", name, "` has vulnerabilities of a severity that policy does not let run: ", concat(", ", found)]),
	"hint": concat("", ["`ct image scan ", name, "` lists them; docs/scanning.md says how to accept what cannot be fixed yet"]),
} if {
	some rules in rule_sets
	scanned(rules)
	not clean(rules)
	found := [text |
		some severity in rules.scan.failing
		counted := input.scan.counts[severity]
		is_number(counted)
		counted > 0
		text := concat(" ", [format_int(counted, 10), severity])
	]
}

# ----------------------------------------------------------------------------------------------------------- words

name := lib.word(image.name)

# Is what a job consists of vouched for: its commit, its scripts, its dependencies? Asked twice: without evidence, which says
# what is demanded, and with what was proved. docs/verify.md describes input and answer.
#
# Operators add `deny` rules of their own to this package; nothing overrides them.
package ct.verify

import data.ct.lib

default decision := {
	"demands": {"commit": false, "scripts": [], "dependencies": "none"},
	"allow": false,
	"denials": [{
		"code": "VERIFY_DENIED",
		"rule": "ct.verify.undefined",
		"message": "policy gives no answer about what is signed of this job",
		"hint": "this is a fault of the policy of this host: ask those who run it",
	}],
}

# Nothing is refused before evidence was asked for; nobody takes this for permission if anything is demanded.
decision := {"demands": demands, "allow": true, "denials": []} if {
	lib.ready
	input.evidence == null
	rules_whole
	count(deny) == 0
}

decision := {"demands": demands, "allow": true, "denials": []} if {
	lib.ready
	input.evidence != null
	rules_whole
	proved
	count(deny) == 0
}

decision := {
	"demands": demands,
	"allow": false,
	"denials": [denial | some [_, _, _, denial] in sort(told)],
} if {
	lib.ready
	count(deny) > 0
}

# In the order in which things are looked at, so that the first is what is to be seen first.
told contains [rank, denial.rule, denial.message, denial] if {
	some reason in deny
	denial := with_code(reason)
	rank := object.get(ranks, denial.rule, 0)
}

with_code(reason) := object.union(lib.denial_of(reason, "ct.verify.deny"), {"code": reason.code}) if {
	is_object(reason)
	is_string(reason.code)
}

with_code(reason) := lib.denial_of(reason, "ct.verify.deny") if not is_object(reason)

with_code(reason) := lib.denial_of(reason, "ct.verify.deny") if {
	is_object(reason)
	not is_string(object.get(reason, "code", null))
}

# ------------------------------------------------------------------------------------------------- what is demanded

# Those of the repository, and for strangers' jobs those of `untrusted`, too: all of them have to be met.
rule_sets contains lib.profile.verify

rule_sets contains lib.config.untrusted.verify if lib.stranger

# One that is missing for strangers' jobs lets nothing through.
rule_sets contains {} if {
	lib.stranger
	not lib.config.untrusted.verify
}

# The job can only add to what policy demands.
demands := {"commit": commit_demanded, "scripts": scripts_demanded, "dependencies": level}

default commit_demanded := false

commit_demanded if input.ask.commit == true

commit_demanded if {
	some rules in rule_sets
	rules.commit == true
}

scripts_demanded := sort({path | some path in input.ask.scripts} | {path | some rules in rule_sets; some path in rules.scripts})

strictness := {"none": 0, "integrity": 1, "signature": 2, "provenance": 3}

levels contains strictness[input.ask.dependencies]

levels contains strictness[rules.dependencies] if some rules in rule_sets

level := [name | some name, rank in strictness; rank == max(levels)][0]

# A rule that is missing is none that demands nothing.
rules_whole if {
	count(rule_sets) > 0
	every rules in rule_sets {
		is_boolean(rules.commit)
		is_array(rules.scripts)
		is_array(rules.cover)
		is_number(strictness[rules.dependencies])
	}
}

# Every condition, one by one, in the positive: what is undefined allows nothing.
proved if {
	every rules in rule_sets {
		commit_proved(rules)
		every path in scripts_demanded {
			manifest_accepted(rules, path)
		}
		every path in rules.cover {
			covered(rules, path)
		}
		dependencies_proved(rules)
	}
}

# ------------------------------------------------------------------------------------------------------- the commit

commit := input.evidence.commit

commit_proved(_) if commit_demanded == false

commit_proved(rules) if {
	commit_demanded == true
	commit.is_claimed == true
	count(commit.dirty) == 0
	some signer in commit.signers
	lib.matches(rules.commit_signers, signer.signer)
}

deny contains {
	"code": "VERIFY_EVIDENCE_MISSING",
	"rule": "ct.verify.commit",
	"message": "the working tree has to be that of a signed commit, and there is no commit",
	"hint": "run it in the work tree of a git repository, with everything committed",
} if {
	commit_demanded
	input.evidence.commit == null
}

deny contains {
	"code": commit.problem.code,
	"rule": "ct.verify.commit",
	"message": concat("", ["the commit ", short(commit.id), " is not signed by anybody who is accepted: ", commit.problem.message]),
	"hint": "sign it (git commit -S), or ask those who run this host to add the signer to `verify: signers` of their policy",
} if {
	commit_demanded
	commit.problem != null
}

deny contains {
	"code": "VERIFY_COMMIT_UNTRUSTED",
	"rule": "ct.verify.commit",
	"message": concat("", ["the commit ", short(commit.id), " is signed by ", names(commit.signers), ", who may not sign commits of this repository"]),
	"hint": "ask those who run this host about `verify: commit-signers` of their policy",
} if {
	commit_demanded
	count(commit.signers) > 0
	some rules in rule_sets
	not any_matches(rules.commit_signers, commit.signers)
}

deny contains {
	"code": "VERIFY_COMMIT_INVALID",
	"rule": "ct.verify.commit_claimed",
	"message": concat("", ["the signed commit is ", short(commit.id), ", and the run is said to be of another"]),
} if {
	commit_demanded
	commit.is_claimed == false
}

deny contains {
	"code": "VERIFY_TREE_DIRTY",
	"rule": "ct.verify.tree",
	"message": concat("", ["the working tree is not that of the commit ", short(commit.id), ": ", concat(", ", commit.dirty)]),
	"hint": "commit what changed, and remove what git does not know (git status)",
} if {
	commit_demanded
	count(commit.dirty) > 0
}

# ------------------------------------------------------------------------------------------------------ the scripts

manifest_accepted(rules, path) if {
	some manifest in input.evidence.scripts
	manifest.manifest == path
	any_matches(rules.script_signers, manifest.signers)
}

covered(rules, path) if {
	some manifest in input.evidence.scripts
	any_matches(rules.script_signers, manifest.signers)
	manifest.files[path]
}

covered(rules, path) if {
	some manifest in input.evidence.scripts
	any_matches(rules.script_signers, manifest.signers)
	some directory in manifest.directories
	within(path, directory)
}

# Without a manifest that is demanded, none will be asked for.
scripts_known if input.evidence != null

scripts_known if count(scripts_demanded) == 0

within(path, directory) if path == directory

within(path, directory) if startswith(path, concat("", [directory, "/"]))

deny contains {
	"code": manifest.problem.code,
	"rule": "ct.verify.scripts",
	"message": concat("", ["the manifest `", manifest.manifest, "` is not signed by anybody who is accepted: ", manifest.problem.message]),
	"hint": "sign the files again (ct sign), or ask those who run this host to add the signer to `verify: signers` of their policy",
} if {
	some manifest in input.evidence.scripts
	manifest.manifest in scripts_demanded
	manifest.problem != null
}

deny contains {
	"code": "SIGNATURE_UNTRUSTED",
	"rule": "ct.verify.scripts",
	"message": concat("", ["the manifest `", manifest.manifest, "` is signed by ", names(manifest.signers), ", who may not sign scripts of this repository"]),
	"hint": "ask those who run this host about `verify: script-signers` of their policy",
} if {
	some manifest in input.evidence.scripts
	manifest.manifest in scripts_demanded
	manifest.problem == null
	some rules in rule_sets
	not any_matches(rules.script_signers, manifest.signers)
}

deny contains {
	"code": "VERIFY_EVIDENCE_MISSING",
	"rule": "ct.verify.scripts",
	"message": concat("", ["the signed manifest `", path, "` is not there"]),
	"hint": concat("", ["make it: ct sign PATH… --key FILE --output ", path]),
} if {
	input.evidence != null
	some path in scripts_demanded
	not path in {manifest.manifest | some manifest in input.evidence.scripts}
}

deny contains {
	"code": "VERIFY_EVIDENCE_MISSING",
	"rule": "ct.verify.cover",
	"message": concat("", ["`", path, "` has to be signed, and no accepted manifest has it"]),
	"hint": "sign it as well (ct sign), and name the manifest in ct.yml: `verify: {scripts: FILE}`",
} if {
	scripts_known
	some rules in rule_sets
	some path in rules.cover
	not covered(rules, path)
}

# ------------------------------------------------------------------------------------------------- the dependencies

dependencies_proved(_) if level == "none"

dependencies_proved(rules) if {
	level != "none"
	count(input.evidence.dependencies) > 0
	every lock in input.evidence.dependencies {
		lock.problem == null
		count(lock.unhashed) == 0
		every origin in lock.origins {
			from_registry(lock, origin)
		}
		count(lock.invalid) == 0
		signed_enough(lock)
		proven_enough(rules, lock)
	}
}

from_registry(lock, origin) if lib.config.verify.registries[lock.kind][origin]

from_registry(lock, origin) if {
	count(lib.config.verify.registries[lock.kind]) == 0
	origin in lock.configured
}

# An index of Python packages signs nothing itself: there, the signature is that of whoever published.
signed_enough(_) if strictness[level] < strictness.signature

signed_enough(lock) if count(lock.unsigned) == 0

proven_enough(_, lock) if not needs_provenance(lock)

proven_enough(rules, lock) if {
	needs_provenance(lock)
	count(lock.unproven) == 0
	every signers in lock.publishers {
		some signer in signers
		lib.matches(rules.publishers, signer)
	}
}

needs_provenance(_) if level == "provenance"

needs_provenance(lock) if {
	level == "signature"
	lock.kind == "pypi"
}

deny contains {
	"code": "VERIFY_EVIDENCE_MISSING",
	"rule": "ct.verify.dependencies",
	"message": "dependencies have to be verified, and there is no lock file",
	"hint": "name it in ct.yml: `verify: {dependencies: {level: LEVEL, locks: [FILE]}}`",
} if {
	level != "none"
	input.evidence != null
	count(input.evidence.dependencies) == 0
}

deny contains refusal(lock, lock.problem.code, lock.problem.message) if {
	some lock in demanded_locks
	lock.problem != null
}

deny contains refusal(lock, "VERIFY_DEPENDENCY_INTEGRITY", concat("", ["without a digest that counts: ", concat(", ", lock.unhashed)])) if {
	some lock in demanded_locks
	count(lock.unhashed) > 0
}

deny contains refusal(lock, "VERIFY_DEPENDENCY_INTEGRITY", concat("", ["packages come from ", origin, ", which is not the registry"])) if {
	some lock in demanded_locks
	some origin in lock.origins
	not from_registry(lock, origin)
}

deny contains refusal(lock, "VERIFY_DEPENDENCY_INVALID", concat("", ["evidence does not verify, or is about another package: ", concat(", ", lock.invalid)])) if {
	some lock in demanded_locks
	count(lock.invalid) > 0
}

deny contains refusal(lock, "VERIFY_DEPENDENCY_UNSIGNED", concat("", ["without a signature of the registry: ", concat(", ", lock.unsigned)])) if {
	some lock in demanded_locks
	strictness[level] >= strictness.signature
	count(lock.unsigned) > 0
}

deny contains refusal(lock, "VERIFY_DEPENDENCY_UNPROVEN", concat("", ["without an accepted provenance: ", concat(", ", lock.unproven)])) if {
	some lock in demanded_locks
	needs_provenance(lock)
	count(lock.unproven) > 0
}

deny contains refusal(lock, "VERIFY_DEPENDENCY_UNPROVEN", concat("", ["published by ", concat(", ", signers), ", whose provenance does not count here"])) if {
	some lock in demanded_locks
	needs_provenance(lock)
	some rules in rule_sets
	some signers in lock.publishers
	not some_matches(rules.publishers, signers)
}

demanded_locks contains lock if {
	level != "none"
	some lock in input.evidence.dependencies
}

refusal(lock, code, message) := {
	"code": code,
	"rule": "ct.verify.dependencies",
	"message": concat("", [lock.lock, ": ", message]),
	"hint": "docs/verify.md says what each level needs; ct evidence fetch collects what a registry has",
}

# ----------------------------------------------------------------------------------------------------------- words

any_matches(patterns, signers) if {
	some signer in signers
	lib.matches(patterns, signer.signer)
}

some_matches(patterns, names) if {
	some name in names
	lib.matches(patterns, name)
}

names(signers) := concat(", ", sort({text |
	some signer in signers
	text := concat("", [signer.who, " (", signer.signer, ")"])
}))

short(id) := substring(id, 0, 12)

# In which order denials are told.
ranks := {
	"ct.verify.commit": 1,
	"ct.verify.commit_claimed": 2,
	"ct.verify.tree": 3,
	"ct.verify.scripts": 4,
	"ct.verify.cover": 5,
	"ct.verify.dependencies": 6,
}

# May this job run, and what network does it get? Asked once per run. docs/policy.md describes input and answer.
#
# Operators add `deny` rules of their own to this package; nothing overrides them.
package ct.admission

import data.ct.exec
import data.ct.lib

default decision := {
	"allow": false,
	"denials": [{
		"rule": "ct.admission.undefined",
		"message": "policy gives no answer about this job",
		"hint": "this is a fault of the policy of this host: ask those who run it",
	}],
	"network": {"mode": "enforce", "allow": []},
}

decision := {"allow": true, "denials": [], "network": network, "audit": audit, "code": exec.settings} if {
	lib.ready
	allowed
	count(deny) == 0
}

decision := {
	"allow": false,
	"denials": [denial | some [_, _, denial] in sort(told)],
	"network": {"mode": "enforce", "allow": []},
} if {
	lib.ready
	count(deny) > 0
}

# By their rules, in order.
told contains [denial.rule, denial.message, denial] if {
	some reason in deny
	denial := lib.denial_of(reason, "ct.admission.deny")
}

# Every condition, one by one, in the positive: what is undefined allows nothing.
allowed if {
	trust_allowed
	repository_allowed
	ref_allowed
	actor_allowed
	image_allowed
	cpus_allowed
	memory_allowed
	disk_allowed
	timeout_allowed
	every name in input.secrets {
		secret_allowed(name)
	}
	every asked in input.network.ask {
		ask_allowed(asked)
	}
	mode
	audit
	exec.settings
}

run := input.run

profile := lib.profile

stranger if run.trust == "untrusted"

# Where a setting that counts for the run is written.
key_of(setting) := object.get(object.get(profile, "keys", {}), setting, setting)

# ------------------------------------------------------------------------------------------------- where it is from

trust_allowed if profile.trust[run.trust]

deny contains {
	"rule": "ct.admission.trust",
	"message": concat("", ["jobs of origin `", known(run, "trust"), "` do not run on this host"]),
	"hint": concat("", ["ask those who run this host about `", key_of("trust"), "` of their policy"]),
} if {
	not trust_allowed
}

repository_allowed if lib.matches(lib.config.repositories, object.get(run, "repository", null))

deny contains {
	"rule": "ct.admission.repository",
	"message": concat("", ["jobs of the repository `", known(run, "repository"), "` do not run on this host"]),
	"hint": "ask those who run this host to add it to `admission: repositories` of their policy",
} if {
	not repository_allowed
}

ref_allowed if lib.matches(profile.refs, object.get(run, "ref", null))

deny contains {
	"rule": "ct.admission.ref",
	"message": concat("", ["jobs of the ref `", known(run, "ref"), "` do not run on this host"]),
	"hint": concat("", ["ask those who run this host to add it to `", key_of("refs"), "` of their policy"]),
} if {
	not ref_allowed
}

actor_allowed if lib.matches(profile.actors, lower(run.actor))

actor_allowed if profile.actors.any

deny contains {
	"rule": "ct.admission.actor",
	"message": concat("", ["jobs of `", known(run, "actor"), "` do not run on this host"]),
	"hint": concat("", ["ask those who run this host to add them to `", key_of("actors"), "` of their policy"]),
} if {
	not actor_allowed
}

# -------------------------------------------------------------------------------------------------- what it is made of

image_allowed if {
	image_fits(profile.images)
	image_fits_stranger
}

image_fits(patterns) if lib.matches(patterns, input.image.name)

image_fits(patterns) if patterns.exact[input.image.digest]

image_fits_stranger if not stranger

image_fits_stranger if image_fits(lib.config.untrusted.images)

deny contains {
	"rule": "ct.admission.image",
	"message": concat("", ["the image `", known(input.image, "name"), "` is not one that this job may have"]),
	"hint": concat("", ["choose another image, or ask those who run this host to add it to `", image_key, "` of their policy"]),
} if {
	not image_allowed
}

# What keeps the image out.
default image_key := "untrusted: images"

image_key := key_of("images") if not image_fits(profile.images)

# Least of the ceilings that count.
ceiling(key) := profile.limits[key] if not stranger

ceiling(key) := min({profile.limits[key], lib.config.untrusted.limits[key]}) if stranger

default limit_key(_) := "untrusted: limits"

limit_key(key) := key_of("limits") if ceiling(key) == profile.limits[key]

# Rego compares values of any types: what is no number is less than all of them.
at_most(key) if {
	is_number(input.resources[key])
	is_number(ceiling(key))
	input.resources[key] <= ceiling(key)
}

cpus_allowed if at_most("cpus")

memory_allowed if at_most("memory_mib")

disk_allowed if at_most("disk_mib")

timeout_allowed if at_most("timeout_seconds")

deny contains too_much("ct.admission.cpus", "cpus", "virtual CPUs", "resources: cpu") if not cpus_allowed

deny contains too_much("ct.admission.memory", "memory_mib", "MiB of memory", "resources: memory") if not memory_allowed

deny contains too_much("ct.admission.disk", "disk_mib", "MiB of disk", "resources: disk") if not disk_allowed

deny contains too_much("ct.admission.timeout", "timeout_seconds", "seconds of time", "timeout") if not timeout_allowed

too_much(rule, key, unit, setting) := {
	"rule": rule,
	"message": concat("", ["the job asks for ", number(input.resources, key), " ", unit, "; it may have ", limit]),
	"hint": concat("", ["ask for less in `", setting, "` of ct.yml, or ask those who run this host about `", limit_key(key), "` of their policy"]),
} if {
	limit := number({"ceiling": ceiling(key)}, "ceiling")
} else := {
	"rule": rule,
	"message": concat("", ["policy does not say how much the job may have of: ", unit]),
}

# --------------------------------------------------------------------------------------------------------- secrets

# Nothing is given to strangers, whatever else is said.
secret_allowed(name) if {
	run.trust in {"local", "trusted"}
	some grant in grants
	grant_names(grant, name)
	grant.trust[run.trust]
	lib.matches(grant.repositories, object.get(run, "repository", null))
	lib.matches(grant.refs, object.get(run, "ref", null))
}

grants contains grant if some grant in lib.config.secrets

grants contains grant if some grant in profile.secrets

grant_names(grant, name) if {
	grant.prefix == false
	grant.name == name
}

grant_names(grant, name) if {
	grant.prefix == true
	startswith(name, grant.name)
}

deny contains {
	"rule": "ct.admission.secret",
	"message": concat("", ["the job may not have the secret `", name, "`"]),
	"hint": "ask those who run this host to give it to this repository and ref in `secrets` of their policy",
} if {
	not stranger
	some name in input.secrets
	not secret_allowed(name)
}

deny contains {
	"rule": "ct.admission.secret",
	"message": concat("", ["the job may not have the secret `", name, "`: jobs of strangers get none"]),
	"hint": "secrets go to jobs of people of the project, for instance once the change is merged",
} if {
	stranger
	some name in input.secrets
}

# --------------------------------------------------------------------------------------------------------- network

network := {"mode": mode, "allow": allow}

# The strictest of what counts; whoever asks for less does not get it.
mode := [name | some name, rank in lib.strictness; rank == max(ranks)][0]

ranks contains lib.strictness[profile.mode]

ranks contains lib.strictness[input.network.mode]

ranks contains lib.strictness[lib.config.untrusted.mode] if stranger

# In the order of asking; then what everybody gets.
allow := array.concat(input.network.ask, [given |
	some given in profile.always
	not given in input.network.ask
])

ask_allowed(asked) if {
	within(lib.config.ceilings[profile.ceiling], asked)
	within_stranger(asked)
	count(forbidding(asked)) == 0
}

within_stranger(_) if not stranger

within_stranger(asked) if within(lib.config.ceilings[lib.config.untrusted.ceiling], asked)

# A preset brings addresses of any class with it, so a rule about its hosts does not give it; its name does.
within(ceiling, asked) if {
	asked.addresses == "any"
	ceiling.presets[asked.rule]
}

within(ceiling, _) if lib.covers_everything(ceiling)

within(ceiling, asked) if {
	asked.addresses == "public"
	lib.ceiling_covers(ceiling, asked.host, asked.port, asked.protocol)
}

# Entries of the lists that forbid what is asked for.
forbidding(asked) := lib.listed(lib.config.egress.block, asked.host) | lib.listed(lib.config.egress.ban, asked.host)

deny contains {
	"rule": "ct.admission.network",
	"message": concat("", ["the job may not ask for `", asked.rule, "`"]),
	"hint": concat("", [
		"remove it from `network: allow:` in ct.yml, or ask those who run this host to add `", asked.rule, "` to `egress: allow` of their policy",
	]),
} if {
	some asked in input.network.ask
	count(forbidding(asked)) == 0
	not ask_allowed(asked)
}

deny contains {
	"rule": "ct.admission.network_forbidden",
	"message": concat("", ["the job asks for `", asked.rule, "`, which is forbidden on this host (", entry, ")"]),
	"hint": "remove it from `network: allow:` in ct.yml",
} if {
	some asked in input.network.ask
	some entry in forbidding(asked)
}

# ----------------------------------------------------------------------------------------------------------- record

# Whether system calls are on record: the strictest of what counts.
audit := [name | some name, rank in lib.audit_strictness; rank == max(audit_ranks)][0] if lib.audit_strictness[profile.audit] >= 0

audit_ranks contains lib.audit_strictness[profile.audit]

audit_ranks contains lib.audit_strictness[lib.config.untrusted.audit] if stranger

# What code control refuses and records is on record.
audit_ranks contains lib.audit_strictness[exec.audit]

# ----------------------------------------------------------------------------------------------------------- words

known(object_, key) := value if {
	value := object_[key]
	is_string(value)
} else := "(unknown)"

number(object_, key) := format_int(object_[key], 10) if {
	is_number(object_[key])
} else := "(unknown)"

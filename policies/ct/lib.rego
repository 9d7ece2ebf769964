# What the packages ct.admission and ct.egress share. docs/policy.md describes input and data.
package ct.lib

# The prepared policy data. Nothing is decided without it.
config := data.ct.config

# Input and data are of the version that these rules know.
ready if {
	input.version == 1
	config.version == 1
}

# Whoever is not known to be of this machine, or trusted; in two rules, because `not` must not see what is undefined.
stranger if not known

known if input.run.trust in {"local", "trusted"}

# ------------------------------------------------------------------------------------- whose settings count

# The settings of the run's repository: its own, else those of the longest pattern that fits, else the general ones.
profile := config.profiles.exact[repository]

profile := config.profiles.prefixes[longest_prefix] if not config.profiles.exact[repository]

profile := config.general if {
	not config.profiles.exact[repository]
	not longest_prefix
}

# Unknown ones have no name: `not` must not see what is undefined.
repository := object.get(input.run, "repository", "")

# Patterns that fit one name differ in length.
longest_prefix := lengths[max(object.keys(lengths))] if {
	lengths := {count(candidate): candidate |
		some candidate, _ in config.profiles.prefixes
		startswith(repository, candidate)
	}
}

# Whether one of the patterns fits. Something that is unknown fits no pattern but `*`.
matches(patterns, _) if patterns.any == true

matches(patterns, value) if patterns.exact[value]

matches(patterns, value) if {
	some prefix in patterns.prefixes
	startswith(value, prefix)
}

# --------------------------------------------------------------------------------------------- destinations

# The names above a name, without it: of a.b.c, they are b.c and c.
parents(name) := {parent |
	labels := split(name, ".")
	some index, _ in labels
	index > 0
	parent := concat(".", array.slice(labels, index, count(labels)))
}

# A name in the form that lists of hosts are in.
plain(name) := trim_suffix(lower(name), ".")

# Whether jobs of this run may ask for a host (or `*.` pattern), port and protocol.
may_ask(host, port, protocol) if {
	ceiling_covers(config.ceilings[profile.ceiling], host, port, protocol)
	stranger_may_ask(host, port, protocol)
}

stranger_may_ask(_, _, _) if not stranger

stranger_may_ask(host, port, protocol) if {
	input.run.trust == "untrusted"
	ceiling_covers(config.ceilings[config.untrusted.ceiling], host, port, protocol)
}

ceiling_covers(ceiling, _, _, _) if covers_everything(ceiling)

ceiling_covers(ceiling, host, port, protocol) if {
	some destination in ceiling.exact[host]
	reaches(destination, port, protocol)
}

ceiling_covers(ceiling, host, port, protocol) if {
	some parent in parents(host)
	some destination in ceiling.below[parent]
	reaches(destination, port, protocol)
}

covers_everything(ceiling) if count(ceiling.any) > 0

reaches(destination, port, protocol) if {
	destination.port == port
	destination.protocol in {protocol, "tcp"}
}

# ------------------------------------------------------------------------------------------------ host lists

# The entries of a list of hosts that are about a name or an address, as the operator wrote them.
listed(list, host) := ({entry | entry := list.exact[host]} | {entry | some parent in parents(host); entry := list.below[parent]}) | {network |
	some key in network_keys(host)
	some network in list.networks[key]
	net.cidr_contains(network, host)
}

# Where networks that hold an address are filed; src/policy/data.ts files them.
network_keys(address) := {"*", groups[0], concat(".", groups)} if {
	is_ipv4(address)
	groups := array.slice(split(address, "."), 0, 2)
}

network_keys(address) := {"*", groups[0], concat(":", groups)} if {
	contains(address, ":")
	groups := [group |
		some written in array.slice(split(address, ":"), 0, 2)
		group := hex_group(written)
	]
}

network_keys(name) := set() if {
	not is_ipv4(name)
	not contains(name, ":")
}

# No name ends in a number (src/policy/destination.ts).
is_ipv4(host) if {
	not contains(host, ":")
	groups := split(host, ".")
	count(groups) == 4
	to_number(groups[3]) >= 0
}

is_address(host) if is_ipv4(host)

is_address(host) if contains(host, ":")

hex_group(written) := "0" if written == ""

hex_group(written) := written if written != ""

# ---------------------------------------------------------------------------------------------------- denials

# How much a mode forbids.
strictness := {"audit": 0, "enforce": 1, "terminate": 2}

audit_strictness := {"off": 0, "on": 1, "required": 2}

# A denial in the form of the answer. Of what operators' rules give, anything is a denial.
denial_of(reason, _) := object.filter(reason, {"rule", "message", "hint"}) if well_formed(reason)

denial_of(reason, fallback) := {"rule": fallback, "message": reason} if is_string(reason)

denial_of(reason, fallback) := {
	"rule": fallback,
	"message": "a rule of this host's policy forbids it, without saying why",
} if {
	not well_formed(reason)
	not is_string(reason)
}

well_formed(reason) if {
	is_object(reason)
	is_string(reason.rule)
	is_string(reason.message)
	is_string(object.get(reason, "hint", ""))
}

# A value in a sentence.
word(value) := value if is_string(value)

word(value) := "(unknown)" if not is_string(value)

# `example.com:443`, `[2001:db8::7]:443`
authority(host, port) := concat("", [bracketed(host), ":", format_int(port, 10)])

bracketed(host) := concat("", ["[", host, "]"]) if contains(host, ":")

bracketed(host) := host if not contains(host, ":")

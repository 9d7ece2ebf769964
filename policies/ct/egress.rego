# May this event of a run's network pass? Asked for every DNS question, connection, resolved address, beginning of a stream,
# plain HTTP request, and attempt that has no way out. docs/policy.md describes input and answer.
#
# Operators add `deny` rules of their own to this package: they bind in every mode, and nothing overrides them.
package ct.egress

import data.ct.lib

default decision := {
	"action": "deny",
	"denial": {
		"rule": "ct.egress.undefined",
		"message": "policy gives no answer to this request of the network",
		"hint": "this is a fault of the policy of this host: ask those who run it",
	},
}

# What is forbidden, whatever allows it and in every mode.
decision := {"action": action, "denial": denial} if {
	understood
	count(deny) > 0
	[rank, denial] := min(bound)
	action := binding_action(rank)
}

# What a rule allows.
decision := {"action": "allow", "allowed_by": min(allowed_by)} if {
	understood
	count(deny) == 0
	count(allowed_by) > 0
}

# What nothing allows: mode `audit` only records it.
decision := {"action": unruled_action, "denial": unruled} if {
	understood
	count(deny) == 0
	count(allowed_by) == 0
}

# Event, mode and versions are ones that these rules know; everything else has no answer.
understood if {
	lib.ready
	lib.strictness[input.network.mode] >= 0
	complete
}

complete if {
	request.kind == "dns"
	is_string(request.name)
}

complete if {
	request.kind in {"connect", "address", "stream"}
	is_string(request.host)
	is_number(request.port)
	is_boolean(request.literal)
}

complete if request.kind == "other"

mode := input.network.mode

request := input.request

# --------------------------------------------------------------------------------------- what allows: the rules

# The name or address that is asked for; what has no way out has none.
host := request.name if request.kind == "dns"

host := request.host if request.kind in {"connect", "address", "stream"}

# Rules about the host. An address is reached by what names it alone, not by a pattern.
about_host contains destination if some destination in input.network.allow.exact[host]

about_host contains destination if {
	is_name
	some parent in lib.parents(host)
	some destination in input.network.allow.below[parent]
}

about_host contains destination if {
	is_name
	some destination in input.network.allow.any
}

is_name if {
	not request.literal
	not lib.is_address(host)
}

# Rules about host and port. Port 0 is every port, of `*` alone.
about_port contains destination if {
	some destination in about_host
	destination.port == request.port
}

about_port contains destination if {
	some destination in about_host
	destination.host == "*"
	destination.port == 0
}

# A name may be known if there is anything that may be done with it. The type does not matter: the proxy answers only some.
allowed_by contains destination.rule if {
	request.kind == "dns"
	some destination in about_host
}

allowed_by contains destination.rule if {
	request.kind == "connect"
	some destination in about_port
}

# All of the addresses: the connection goes to any of them. `deny` says what is wrong with those that are not usable.
allowed_by contains destination.rule if {
	request.kind == "address"
	count(request.addresses) > 0
	every fact in request.addresses {
		usable(fact)
	}
	some destination in about_port
}

allowed_by contains destination.rule if {
	request.kind == "stream"
	some destination in about_port
	speaks(destination.protocol)
}

speaks("tcp")

speaks("ssh") if request.protocol == "ssh"

# The name is the one that was allowed, and it is the real one.
speaks("tls") if {
	request.protocol == "tls"
	request.ech == false
	sni_fits
}

speaks("http") if {
	request.protocol == "http"
	lower(request.http_host) == host
}

sni_fits if lower(request.sni) == host

# RFC 6066 §3: there is no SNI for an address.
sni_fits if {
	request.literal == true
	request.sni == null
}

# -------------------------------------------------------------------------------- what is forbidden in any case

# Banned: whoever tries it is ended.
deny contains {
	"rule": "ct.egress.banned",
	"message": concat("", ["`", subject, "` is banned on this host (", entry, ")"]),
	"hint": "no job may reach it; if that is wrong, ask those who run this host about `egress: ban` of their policy",
	"terminate": true,
} if {
	some subject in subjects
	some entry in lib.listed(lib.config.egress.ban, subject)
}

deny contains {
	"rule": "ct.egress.blocked",
	"message": concat("", ["`", subject, "` is blocked on this host (", entry, ")"]),
	"hint": "no job may reach it; if that is wrong, ask those who run this host about `egress: block` of their policy",
} if {
	some subject in subjects
	some entry in lib.listed(lib.config.egress.block, subject)
}

# Every name and address that the event is about, also those that the guest only mentions.
subjects contains lib.plain(value) if {
	some field in ["name", "host", "sni", "http_host", "address"]
	value := request[field]
	is_string(value)
}

subjects contains fact.address if some fact in request.addresses

# The job file gives this step no network.
deny contains {
	"rule": "ct.egress.step_without_network",
	"message": concat("", ["the step `", lib.word(input.step.name), "` has no network, and tried to reach ", tried]),
	"hint": "remove `network: none` from the step in ct.yml if it needs what the job may reach",
} if {
	input.step
	not step_has_network
}

step_has_network if input.step.network == true

# Everything but TCP and our DNS.
deny contains {
	"rule": "ct.egress.no_way_out",
	"message": concat("", ["the job tried ", tried, "; there is no way out but TCP, and DNS of this host"]),
	"hint": other_hint,
} if {
	request.kind == "other"
	not is_forged
}

# Seen by the host, not told by the guest.
deny contains {
	"rule": "ct.egress.forged_request",
	"message": "the VM asked the host for connections in a way in which its guest agent never does: something has taken its place",
	"hint": "nothing was let out because of it; treat what this job says and produces with suspicion",
} if {
	is_forged
}

is_forged if {
	request.kind == "other"
	request.what == "forged-request"
}

default other_hint := "use TCP; names are resolved by the DNS server that the system of the VM is set up with"

other_hint := "the DNS server that the system of the VM is set up with answers; others cannot be reached" if {
	request.what == "udp"
	request.port == 53
}

# An address that is not of the public internet, or of this machine: reached from here, not from the job. So mode `audit`
# does not open it either.
deny contains {
	"rule": "ct.egress.address",
	"message": concat("", ["`", host, "` has the address ", lib.word(fact.address), ", which is ", classes_of(fact)]),
	"hint": concat("", [
		"if that is meant, ask those who run this host to add `", host, ": [", lib.word(fact.address), "]` to `egress: private` of their policy",
	]),
} if {
	request.kind == "address"
	some fact in request.addresses
	not usable(fact)
	not is_metadata(fact)
}

deny contains {
	"rule": "ct.egress.metadata",
	"message": concat("", [
		"`", host, "` has the address ", lib.word(fact.address), ", which gives out credentials of this machine in a cloud",
	]),
	"hint": "jobs have an identity of their own; nothing but its exact address in `egress: private` of policy opens it",
} if {
	request.kind == "address"
	some fact in request.addresses
	not usable(fact)
	is_metadata(fact)
}

# The positive list of what may be connected to.
usable(fact) if {
	is_array(fact.classes)
	count(fact.classes) == 0
}

usable(fact) if {
	ordinary(fact)
	fact.source == "operator"
}

# The operator's own mirrors.
usable(fact) if {
	ordinary(fact)
	some destination in about_port
	destination.addresses == "any"
}

usable(fact) if {
	ordinary(fact)
	not hides_another(fact)
	some opened in private_networks
	some network in opened.networks
	net.cidr_contains(network, fact.address)
}

usable(fact) if {
	some opened in private_networks
	opened.addresses[fact.address]
}

private_networks contains lib.config.egress.private.any

private_networks contains lib.config.egress.private.exact[host]

private_networks contains lib.config.egress.private.below[parent] if some parent in lib.parents(host)

# An IPv6 address that a translator makes an IPv4 one of that is not public: whoever opens the network of the translator does
# not mean the neighbours of the translator. (0.0.0.0/8 is what other readings of a longer prefix give.)
hides_another(fact) if {
	contains(fact.address, ":")
	"translated" in fact.classes
	some class in fact.classes
	not class in {"translated", "unspecified"}
}

is_metadata(fact) if "metadata" in fact.classes

ordinary(fact) if {
	is_array(fact.classes)
	not is_metadata(fact)
}

classes_of(fact) := concat(", ", [class | some class in fact.classes]) if is_array(fact.classes)

classes_of(fact) := "of no known class" if not is_array(fact.classes)

# ------------------------------------------------------------------------------------------- words and actions

# Reasons of `deny` in the order in which they are told.
bound contains [rank_of(reason), lib.denial_of(reason, "ct.egress.deny")] if some reason in deny

rank_of(reason) := 0 if ends_the_run(reason)

rank_of(reason) := rank if {
	not ends_the_run(reason)
	rank := object.get(ranks, rule_of(reason), 3)
}

ranks := {"ct.egress.blocked": 1, "ct.egress.step_without_network": 2}

rule_of(reason) := object.get(reason, "rule", "") if is_object(reason)

rule_of(reason) := "" if not is_object(reason)

ends_the_run(reason) if reason.terminate == true

binding_action(rank) := "terminate" if rank == 0

binding_action(rank) := denied if rank > 0

denied := "terminate" if terminates

denied := "deny" if not terminates

terminates if {
	mode == "terminate"
	not noise
}

unruled_action := "allow" if mode == "audit"

unruled_action := denied if mode != "audit"

# Questions that every system asks, and that no name of the outside can be in: denied, but no violation.
noise if {
	request.kind == "dns"
	not contains(request.name, ".")
}

noise if {
	request.kind == "dns"
	some zone in ["arpa", "local", "localhost", "lan", "home", "internal", "invalid", "test"]
	endswith(request.name, concat("", [".", zone]))
}

# A name without addresses cannot be connected to; that is no violation.
noise if {
	request.kind == "address"
	count(request.addresses) == 0
}

default tried := "something"

tried := concat("", ["`", request.name, "`"]) if request.kind == "dns"

tried := concat("", ["`", lib.authority(host, request.port), "`"]) if request.kind in {"connect", "address", "stream"}

tried := concat("", [what, " to ", lib.authority(request.address, request.port)]) if {
	request.kind == "other"
	what := attempts[request.what]
	request.address
	request.port
}

tried := attempts[request.what] if {
	request.kind == "other"
	not request.address
}

tried := concat("", [attempts[request.what], " to ", request.address]) if {
	request.kind == "other"
	request.address
	not request.port
}

attempts := {
	"udp": "UDP",
	"raw-socket": "a raw socket (ICMP, or packets of its own)",
	"packet-socket": "a packet socket",
	"other-family": "a socket of another address family",
	"forged-request": "a forged request to the host",
}

# Why no rule allows it. The last words are the most general ones.
unruled := {
	"rule": "ct.egress.not_allowed",
	"message": concat("", ["the job may not reach ", tried]),
	"hint": ask_hint,
} if {
	count(about_host) == 0
	is_name
} else := {
	"rule": "ct.egress.literal",
	"message": concat("", ["the job may not reach the address ", tried, "; no rule names it"]),
	"hint": ask_hint,
} if {
	count(about_host) == 0
} else := {
	"rule": "ct.egress.port",
	"message": concat("", ["the job may not reach ", tried, ", only other ports of that host"]),
	"hint": ask_hint,
} if {
	count(about_port) == 0
} else := {
	"rule": "ct.egress.no_address",
	"message": concat("", ["`", host, "` has no address"]),
} if {
	request.kind == "address"
	count(request.addresses) == 0
} else := {
	"rule": "ct.egress.ech",
	"message": concat("", ["the TLS connection to ", tried, " hides the name that it is for (encrypted ClientHello)"]),
	"hint": concat("", ["switch that off in the client, or ", ask_tcp]),
} if {
	request.protocol == "tls"
	request.ech != false
	speaks_tls
} else := {
	"rule": "ct.egress.sni_missing",
	"message": concat("", ["the TLS connection to ", tried, " does not say the name that it is for (no SNI)"]),
	"hint": concat("", ["have the client send it, or ", ask_tcp]),
} if {
	request.protocol == "tls"
	speaks_tls
	not is_string(request.sni)
} else := {
	"rule": "ct.egress.sni_mismatch",
	"message": concat("", ["the TLS connection to ", tried, " is for another name, `", request.sni, "`"]),
	"hint": concat("", ["connect to `", request.sni, "` by its own name, and let the job reach that"]),
} if {
	request.protocol == "tls"
	speaks_tls
} else := {
	"rule": "ct.egress.host_missing",
	"message": concat("", ["an HTTP request to ", tried, " does not say the host that it is for"]),
	"hint": concat("", ["have the client send `Host`, or ", ask_tcp]),
} if {
	request.protocol == "http"
	speaks_http
	not is_string(request.http_host)
} else := {
	"rule": "ct.egress.host_mismatch",
	"message": concat("", ["an HTTP request to ", tried, " is for another host, `", request.http_host, "`"]),
	"hint": concat("", ["connect to `", request.http_host, "` by its own name, and let the job reach that"]),
} if {
	request.protocol == "http"
	speaks_http
} else := {
	"rule": "ct.egress.protocol",
	"message": concat("", [
		"the job may speak ", concat(" or ", sort({names[destination.protocol] | some destination in about_port})),
		" with ", tried, ", and spoke ", object.get(names, request.protocol, "something else"),
	]),
	"hint": ask_tcp,
} if {
	request.kind == "stream"
}

names := {"tls": "TLS", "http": "HTTP", "ssh": "SSH"}

speaks_tls if {
	some destination in about_port
	destination.protocol == "tls"
}

speaks_http if {
	some destination in about_port
	destination.protocol == "http"
}

# How to ask for what was tried: by the line for the job file, if policy lets jobs ask for it.
ask_hint := concat("", ["add `", wish.text, "` to `network: allow:` of the job in ct.yml"]) if may_ask_for_wish

ask_hint := concat("", [
	"policy does not let this job ask for it: ask those who run this host to add `", wish.text, "` to `egress: allow` of their policy",
]) if {
	not may_ask_for_wish
}

may_ask_for_wish if lib.may_ask(host, wish.port, wish.protocol)

# A name without a dot would be read as a preset.
wish := {"text": host, "port": 443, "protocol": "tls"} if {
	request.kind == "dns"
	contains(host, ".")
}

wish := {"text": concat("", ["https://", host]), "port": 443, "protocol": "tls"} if {
	request.kind == "dns"
	not contains(host, ".")
}

wish := {
	"text": concat("", [usual.scheme, "://", lib.bracketed(host)]),
	"port": request.port,
	"protocol": usual.protocol,
} if {
	request.kind != "dns"
	usual := usual_ports[format_int(request.port, 10)]
}

wish := {
	"text": concat("", ["tcp://", lib.authority(host, request.port)]),
	"port": request.port,
	"protocol": "tcp",
} if {
	request.kind != "dns"
	not usual_ports[format_int(request.port, 10)]
}

usual_ports := {
	"443": {"scheme": "https", "protocol": "tls"},
	"80": {"scheme": "http", "protocol": "http"},
	"22": {"scheme": "ssh", "protocol": "ssh"},
}

ask_tcp := concat("", [
	"write `tcp://", lib.authority(host, request.port), "` in `network: allow:` of ct.yml: then anything may be spoken there",
])

# Which code may run? `settings` is what a run gets, part of the answer of ct.admission; `found` is what the guest's kernel has
# refused or recorded because of it, part of the answer of ct.detect. docs/signed-code.md explains it.
package ct.exec

import data.ct.lib

# --------------------------------------------------------------------------------------------------- what a run gets

settings := {"mode": "off"} if mode == "off"

settings := {"mode": mode, "trust": trust, "interpreters": interpreters} if mode != "off"

# How much a mode forbids.
strictness := {"off": 0, "audit": 1, "enforce": 2, "terminate": 3}

# The strictest of what counts; whoever asks for less does not get it. There is none unless all of it is understood.
mode := [name | some name, rank in strictness; rank == max(ranks)][0] if {
	strictness[lib.profile.exec.mode] >= 0
	understood_of_stranger
	understood_of_job
}

understood_of_stranger if not lib.stranger

understood_of_stranger if strictness[lib.config.untrusted.exec.mode] >= 0

understood_of_job if not input.exec

understood_of_job if strictness[input.exec.mode] >= 0

ranks contains strictness[lib.profile.exec.mode]

ranks contains strictness[lib.config.untrusted.exec.mode] if lib.stranger

ranks contains strictness[input.exec.mode]

# What all of what counts trusts.
trust := [origin |
	some origin in ["source", "built"]
	lib.profile.exec.trust[origin]
	trusted_of_stranger(origin)
]

trusted_of_stranger(_) if not lib.stranger

trusted_of_stranger(origin) if lib.config.untrusted.exec.trust[origin]

# What is refused is to be on record.
audit := {"off": "off", "audit": "on", "enforce": "required", "terminate": "required"}[mode]

# ------------------------------------------------------------------------------------------------------ interpreters

# Of Debian's packages and of the usual images. What is not in an image does no harm. A shell that is one program with many
# others (busybox) is not here: whatever those others read would be taken for code.
shells := {"endings": [".sh", ".bash"], "options": ["-c", "-s"], "arguments": "every"}

python := {"endings": [".py", ".pyc", ".pth"], "options": ["-c"], "arguments": "first"}

node := {
	"endings": [".js", ".mjs", ".cjs", ".ts", ".mts", ".cts"],
	"options": ["-e", "--eval", "-p", "--print", "-pe"],
	"arguments": "first",
}

perl := {"endings": [".pl", ".pm", ".t"], "options": ["-e", "-E"], "arguments": "first"}

ruby := {"endings": [".rb"], "options": ["-e"], "arguments": "first"}

php := {"endings": [".php", ".phar"], "options": ["-r", "-R", "-B", "-E"], "arguments": "first"}

lua := {"endings": [".lua"], "options": ["-e"], "arguments": "first"}

make := {"endings": ["Makefile", "makefile", ".mk"], "options": ["--eval"], "arguments": "first"}

known := {
	"/bin/bash": shells,
	"/bin/dash": shells,
	"/bin/ksh": shells,
	"/bin/zsh": shells,
	"/usr/bin/lua": lua,
	"/usr/bin/luajit": lua,
	"/usr/bin/make": make,
	"/usr/bin/node": node,
	"/usr/bin/perl": perl,
	"/usr/bin/php": php,
	"/usr/bin/python3": python,
	"/usr/bin/ruby": ruby,
	"/usr/local/bin/node": node,
	"/usr/local/bin/perl": perl,
	"/usr/local/bin/php": php,
	"/usr/local/bin/python3": python,
	"/usr/local/bin/ruby": ruby,
}

interpreters := [described |
	some path, interpreter in object.union(known, lib.config.interpreters)
	described := object.union(interpreter, {"path": path, "inline": inline(path)})
]

inline(path) := "forbidden" if inline_forbidden(path)

inline(path) := "allowed" if not inline_forbidden(path)

inline_forbidden(path) if {
	some word in {"*", path, basename(path)}
	forbids_inline(word)
}

forbids_inline(word) if lib.profile.exec.inline[word]

forbids_inline(word) if {
	lib.stranger
	lib.config.untrusted.exec.inline[word]
}

# ---------------------------------------------------------------------------------------------- what was tried to run

# In the form of ct.detect, with what follows from it.
found contains {
	"event": index, "rule": "ct.exec.unsigned", "severity": "high",
	"message": concat("", [program(event), " ", tried(event), ", for which nothing vouches"]),
	"hint": concat("", ["have it built by a step with `network: none`, packages checked by `packages: npm`, or its digest signed (`ct sign`)", and_trust]),
	"action": action,
} if {
	some index, event in input.events
	event.kind == "denied"
	unsigned[event.denied.what]
}

found contains {
	"event": index, "rule": "ct.exec.inline", "severity": "high",
	"message": concat("", [program(event), " ", attempt(event, "started", "start"), " ", event.denied.path, " with code on its command line or standard input"]),
	"hint": "put the code into a file of the repository, or ask those who run this host about `exec: inline` of their policy",
	"action": action,
} if {
	some index, event in input.events
	event.kind == "denied"
	event.denied.what == "inline"
}

# Told by the host itself: it compares packages with their lock file (`packages:` of a step).
found contains {
	"event": index, "rule": "ct.exec.packages", "severity": "high",
	"message": concat("", [event.packages.path, ": ", problems[event.packages.problem]]),
	"hint": "commit the lock file that belongs to what is to be installed; if you have, somebody serves or writes something else",
	"action": action,
} if {
	some index, event in input.events
	event.kind == "packages"
}

problems := {
	"no-lock": "packages are to be checked against this lock file, and it is not in the working tree",
	"changed": "the step that fetched the packages, or one before it, has changed this file",
	"no-digest": "the lock file has no digest of this package, so nobody can tell whether it is the right one",
	"mismatch": "a package that was fetched is not the one that the lock file names",
}

# Without a mode nothing is judged.
action := {"audit": "record", "enforce": "alert", "terminate": "terminate"}[input.code.mode]

unsigned := {
	"exec": ["ran", "run"],
	"script": ["ran the script", "run the script"],
	"library": ["loaded", "load"],
	"mprotect": ["made executable in its memory", "make executable in its memory"],
}

tried(event) := concat(" ", [attempt(event, did, todo), named(event.denied.path)]) if [did, todo] := unsigned[event.denied.what]

attempt(event, did, _) := did if not event.denied.refused

attempt(event, _, todo) := concat("", ["tried to ", todo]) if event.denied.refused

named(path) := path if path != ""

named("") := "something without a name"

and_trust := "" if input.code.trust.built

and_trust := "; policy trusts nothing that steps of this run have built" if not input.code.trust.built

program(event) := event.process.binary if {
	event.process.binary != ""
} else := "an unknown process"

basename(path) := parts[count(parts) - 1] if parts := split(path, "/")

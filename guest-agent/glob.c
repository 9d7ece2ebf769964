/*
 * Glob matcher: see glob.h. Patterns come from the host, names from the job: both are hostile to running time, so a
 * component is matched with one point to return to (no recursion), and a path with a table of reached positions.
 */
#include "glob.h"

#include <stdlib.h>
#include <string.h>

#include "protocol.h"

struct pattern {
	const char *text;
	bool negative;
	bool used;
	size_t count;
	const char **parts;
	size_t *lengths;
};

struct glob_set {
	size_t count;
	struct pattern patterns[];
};

static bool is_any_depth(const struct pattern *pattern, size_t part)
{
	return pattern->lengths[part] == 2 && memcmp(pattern->parts[part], "**", 2) == 0;
}

/* Cuts a text into its components; empty ones and `.` mean nothing. */
static size_t split(const char *text, const char **parts, size_t *lengths)
{
	size_t count = 0;
	while (*text) {
		size_t length = strcspn(text, "/");
		if (length > 0 && !(length == 1 && *text == '.')) {
			if (parts) {
				parts[count] = text;
				lengths[count] = length;
			}
			count++;
		}
		text += length;
		if (*text)
			text++;
	}
	return count;
}

struct glob_set *glob_compile(char *const *patterns, size_t count)
{
	struct glob_set *set = calloc(1, sizeof *set + count * sizeof set->patterns[0]);
	if (!set)
		return NULL;
	for (size_t index = 0; index < count; index++) {
		struct pattern *pattern = &set->patterns[set->count++];
		const char *text = patterns[index];
		pattern->text = text;
		if (*text == '!') {
			pattern->negative = true;
			text++;
		}
		pattern->count = split(text, NULL, NULL);
		pattern->parts = calloc(pattern->count + 1, sizeof *pattern->parts);
		pattern->lengths = calloc(pattern->count + 1, sizeof *pattern->lengths);
		if (!pattern->parts || !pattern->lengths) {
			glob_free(set);
			return NULL;
		}
		split(text, pattern->parts, pattern->lengths);
		if (pattern->count == 0) {
			/* `.` and its like: everything. */
			pattern->parts[0] = "**";
			pattern->lengths[0] = 2;
			pattern->count = 1;
		}
	}
	return set;
}

void glob_free(struct glob_set *set)
{
	for (size_t index = 0; index < set->count; index++) {
		free(set->patterns[index].parts);
		free(set->patterns[index].lengths);
	}
	free(set);
}

/*
 * A bracket expression at `at` (behind the `[`) against one byte. Returns its length up to and with the `]`, or 0 if it
 * is not closed, in which case the `[` is an ordinary character.
 */
static size_t bracket(const char *at, size_t length, unsigned char byte, bool *matches)
{
	size_t index = 0;
	bool inverted = false, found = false;
	if (index < length && (at[index] == '!' || at[index] == '^')) {
		inverted = true;
		index++;
	}
	for (size_t start = index; index < length; index++) {
		unsigned char low = (unsigned char)at[index];
		if (low == ']' && index > start) {
			*matches = found != inverted;
			return index + 1;
		}
		unsigned char high = low;
		if (index + 2 < length && at[index + 1] == '-' && at[index + 2] != ']') {
			high = (unsigned char)at[index + 2];
			index += 2;
		}
		if (byte >= low && byte <= high)
			found = true;
	}
	return 0;
}

bool glob_component(const char *pattern, size_t pattern_length, const char *name, size_t name_length)
{
	size_t at = 0, position = 0;
	size_t star = (size_t)-1, star_position = 0; /* Where the last `*` was, and how much it has taken. */
	while (position < name_length) {
		if (at < pattern_length && pattern[at] == '*') {
			star = at++;
			star_position = position;
			continue;
		}
		size_t taken = 0;
		if (at < pattern_length) {
			if (pattern[at] == '?') {
				taken = 1;
			} else if (pattern[at] == '[') {
				bool matches = false;
				size_t length = bracket(pattern + at + 1, pattern_length - at - 1,
							(unsigned char)name[position], &matches);
				if (length > 0)
					taken = matches ? 1 + length : 0;
				else
					taken = name[position] == '[';
			} else if (pattern[at] == '\\' && at + 1 < pattern_length) {
				taken = pattern[at + 1] == name[position] ? 2 : 0;
			} else {
				taken = pattern[at] == name[position];
			}
		}
		if (taken > 0) {
			at += taken;
			position++;
		} else if (star != (size_t)-1) {
			at = star + 1;
			position = ++star_position;
		} else {
			return false;
		}
	}
	while (at < pattern_length && pattern[at] == '*')
		at++;
	return at == pattern_length;
}

/* `**` may also take no name; a final one takes at least one. */
static void skip_any_depth(const struct pattern *pattern, bool *reached)
{
	for (size_t part = 0; part + 1 < pattern->count; part++)
		if (reached[part] && is_any_depth(pattern, part))
			reached[part + 1] = true;
}

/*
 * Runs a path through a pattern, name by name. `reached[i]`: the first i parts can match the path so far. Says whether
 * the whole pattern matched the path or a directory above it, and whether it could match something below.
 */
static void run(const struct pattern *pattern, const char *path, bool *selects, bool *continues)
{
	enum { MAX_PARTS = CT_MAX_PATH_BYTES / 2 + 2 };
	bool tables[2][MAX_PARTS];
	bool *reached = tables[0], *next = tables[1];
	size_t parts = pattern->count;
	*selects = *continues = false;
	if (parts + 1 > MAX_PARTS)
		return; /* Longer than any path. */
	memset(reached, 0, parts + 1);
	reached[0] = true;
	skip_any_depth(pattern, reached);
	while (*path) {
		size_t length = strcspn(path, "/");
		bool any = false;
		memset(next, 0, parts + 1);
		for (size_t part = 0; part < parts; part++) {
			if (!reached[part])
				continue;
			if (is_any_depth(pattern, part)) {
				next[part] = any = true;
				if (part + 1 == parts)
					next[parts] = true;
			} else if (glob_component(pattern->parts[part], pattern->lengths[part], path, length)) {
				next[part + 1] = any = true;
			}
		}
		if (next[parts]) {
			*selects = *continues = true;
			return;
		}
		if (!any)
			return;
		skip_any_depth(pattern, next);
		bool *swap = reached;
		reached = next;
		next = swap;
		path += length;
		if (*path)
			path++;
	}
	*continues = true;
}

bool glob_selects(struct glob_set *set, const char *path)
{
	bool selected = false;
	for (size_t index = 0; index < set->count; index++) {
		struct pattern *pattern = &set->patterns[index];
		bool selects, continues;
		run(pattern, path, &selects, &continues);
		if (selects) {
			pattern->used = true;
			selected = !pattern->negative;
		}
	}
	return selected;
}

bool glob_may_select_below(const struct glob_set *set, const char *path)
{
	bool possible = false;
	for (size_t index = 0; index < set->count; index++) {
		bool selects, continues;
		run(&set->patterns[index], path, &selects, &continues);
		if (set->patterns[index].negative)
			possible = possible && !selects; /* Takes all below it out, whatever came before. */
		else
			possible = possible || continues;
	}
	return possible;
}

const char *glob_unmatched(const struct glob_set *set, size_t index)
{
	const struct pattern *pattern = &set->patterns[index];
	return pattern->negative || pattern->used ? NULL : pattern->text;
}

/* Patterns of `tree-out`: slash-separated globs over raw bytes. */
#ifndef CT_GLOB_H
#define CT_GLOB_H

#include <stdbool.h>
#include <stddef.h>

struct glob_set;

/*
 * Takes the patterns as docs/guest-link.md describes them: `*`, `?`, `[...]`, `**` for any number of directories, a
 * leading `!` takes matches out again. Wildcards match names that begin with a dot, too. NULL when memory is short.
 * The pattern strings must outlive the set.
 */
struct glob_set *glob_compile(char *const *patterns, size_t count);
void glob_free(struct glob_set *set);

/*
 * Whether the last pattern that matches `path` or a directory above it is a positive one. Remembers which patterns
 * matched something.
 */
bool glob_selects(struct glob_set *set, const char *path);

/* Whether something below the directory `path` could be selected: a walk need not enter it otherwise. */
bool glob_may_select_below(const struct glob_set *set, const char *path);

/* The text of the positive pattern number `index` if it has matched nothing so far, or NULL. */
const char *glob_unmatched(const struct glob_set *set, size_t index);

/* One component against one pattern component; for tests. */
bool glob_component(const char *pattern, size_t pattern_length, const char *name, size_t name_length);

#endif

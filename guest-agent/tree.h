/* The built-ins `tree-in` and `tree-out`: see docs/guest-link.md for the stream and its rules. */
#ifndef CT_TREE_H
#define CT_TREE_H

#include <stdbool.h>
#include <stddef.h>

/*
 * Both run in a process of their own that has already given up its privileges, and return its exit status: 0, or 1
 * with a message written to `error_fd`. `asks_for_code`: each file is mapped once to be executed, for which the kernel looks
 * whether it is signed.
 */
int tree_in(int input_fd, int error_fd, const char *directory, bool asks_for_code);
int tree_out(int output_fd, int error_fd, const char *directory, char *const *patterns, size_t pattern_count);

#endif

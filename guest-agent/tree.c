#include "tree.h"
int tree_in(int input_fd, int error_fd, const char *directory) { (void)input_fd; (void)error_fd; (void)directory; return 1; }
int tree_out(int output_fd, int error_fd, const char *directory, char *const *patterns, size_t pattern_count) { (void)output_fd;(void)error_fd;(void)directory;(void)patterns;(void)pattern_count; return 1; }

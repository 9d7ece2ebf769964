/* BPF programs that are part of the guest agent: what loading them takes, whatever they do. Ends the VM when it fails. */
#ifndef CT_PROGRAMS_H
#define CT_PROGRAMS_H

#include <bpf/libbpf.h>
#include <stddef.h>
#include <stdint.h>

/* Makes the object file `path`, a string, part of this program as `name`_begin to `name`_end. */
#define INCLUDE_OBJECT(name, path)                                                                                     \
	__asm__(".section .rodata." #name ",\"a\",@progbits\n"                                                         \
		".balign 16\n" #name "_begin: .incbin \"" path "\"\n" #name "_end:\n"                                  \
		".previous");                                                                                          \
	extern const uint8_t name##_begin[], name##_end[]

/* Lives as long as PID 1, as does everything that is attached. */
struct bpf_object *programs_open(const char *name, const uint8_t *begin, const uint8_t *end);
void programs_load(struct bpf_object *object);

int programs_map(const struct bpf_object *object, const char *name);
struct bpf_program *programs_find(const struct bpf_object *object, const char *name);

#endif

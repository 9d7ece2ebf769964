/*
 * What an interpreter reads is code, too: which process is one, which of the files it opens its command line names or their
 * names give away, and what is given to it without a file. Then what is mapped to be executed, which may be an interpreter.
 * The verdicts are in code.bpf.h.
 */
#ifndef CT_INTERPRETERS_BPF_H
#define CT_INTERPRETERS_BPF_H

#include "code.bpf.h"

struct process_key {
	__u64 started_ns;
	__u64 process;
};

#define MAX_NAMES 32
/* A process whose program is an interpreter. */
struct interpreting {
	__u16 interpreter;
	__u8 any; /* It has more arguments than names: whatever it reads may be one. */
	__u8 names_count;
	__u32 names[MAX_NAMES]; /* Hashes of the last components of the arguments that are taken for code. */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CODE_MAX_PROCESSES);
	__type(key, struct process_key);
	__type(value, struct interpreting);
} interpreting SEC(".maps");

static __always_inline struct process_key key_of(struct task_struct *task)
{
	struct process_key key = { .started_ns = task->group_leader->start_time, .process = task->tgid };
	return key;
}

/* The last component of a path. */
struct name {
	__u64 tail[2]; /* Its last bytes. */
	__u32 hash;    /* FNV-1a. */
	__u32 bytes;
};

#define FNV_START 0x811c9dc5
#define FNV_PRIME 0x01000193

static const struct name no_name = { .hash = FNV_START };

static __always_inline void name_begin(struct name *name)
{
	name->tail[0] = name->tail[1] = 0;
	name->hash = FNV_START;
	name->bytes = 0;
}

static __always_inline void name_add(struct name *name, __u8 byte)
{
	if (byte == '/') {
		name_begin(name);
		return;
	}
	name->tail[0] = name->tail[0] << 8 | name->tail[1] >> 56;
	name->tail[1] = name->tail[1] << 8 | byte;
	name->hash = (name->hash ^ byte) * FNV_PRIME;
	name->bytes++;
}

static __always_inline int find_interpreter(struct code_settings *settings, struct inode *inode)
{
	__u32 device = inode->i_sb->s_dev;

	for (__u32 index = 0; index < CT_MAX_INTERPRETERS; index++) {
		struct code_interpreter *known = &settings->interpreters[index];
		if (index >= settings->interpreter_count)
			break;
		if (device == known->device ? inode->i_ino == known->inode : (__u64)inode->i_size == known->bytes)
			return index;
	}
	return -1;
}

/* Nothing follows them. */
#define ALL_ARGUMENTS 0xffffffffU

/* A command line that is read byte by byte. */
struct arguments {
	struct process_key process;
	const char *text; /* Of the process. */
	__u32 interpreter;
	__u32 flags;
	__u32 limit; /* Arguments; the environment follows. */
	__u32 count; /* Those that have ended. */
	__u32 position; /* In the one that is read. */
	__u8 is_loaded; /* By another program, which has its name as an argument. */
	__u8 name_passed;
	__u8 is_option;
	__u8 is_long;
	__u8 is_text_over;   /* At the `=` of a long option, */
	__u8 is_letters_over; /* and after a letter that takes the rest. */
	__u8 options_over;
	__u8 is_value; /* The argument belongs to the option before it. */
	__u8 is_inline;
	__u8 is_harmless;
	__u8 has_name;
	__u8 is_broken;
	__u8 is_done; /* What follows does not matter. */
	__u64 letters;
	__u64 option[2];
	struct name name;
};

static __always_inline void argument_begin(struct arguments *line)
{
	line->position = 0;
	line->is_option = line->is_long = line->is_text_over = line->is_letters_over = 0;
	line->letters = line->option[0] = line->option[1] = 0;
}

static __always_inline void argument_add(struct arguments *line, __u8 byte)
{
	__u32 position = line->position++;

	if (position == 0)
		name_begin(&line->name);
	name_add(&line->name, byte);
	if (position == 0)
		line->is_option = byte == '-';
	if (position == 1)
		line->is_long = line->is_option && byte == '-';
	if (line->is_long && byte == '=')
		line->is_text_over = 1;
	if (!line->is_text_over) {
		if (position < 8)
			line->option[0] |= (__u64)byte << (position * 8);
		else if (position < 16)
			line->option[1] |= (__u64)byte << ((position - 8) * 8);
		else
			line->option[0] = ~0ULL; /* Longer than any of ours. */
	}
	if (position >= 1 && !line->is_long && !line->is_letters_over) {
		line->letters |= code_letter_bit(byte);
		/* What follows is the name of a module or directory, for all that have these options. */
		line->is_letters_over = byte == 'I' || byte == 'M' || byte == 'm' || byte == 'F';
	}
}

/* An option of a shell that takes the next argument: -o errexit, -O extglob. */
#define LETTERS_O ((1ULL << 14) | (1ULL << (32 + 14)))

/* `--version` and `--help` as the only argument: the one thing to call an interpreter for without code. */
#define TEXT_VERSION 0x6f69737265762d2dULL
#define TEXT_HELP 0x706c65682d2dULL

static __always_inline void end_option(struct arguments *line, struct code_interpreter *interpreter)
{
	if (line->position == 1) {
		/* `-`: no more options to a shell, standard input to others. */
		line->options_over = 1;
		if (!(line->flags & CT_INTERPRETER_FLAG_EVERY_ARGUMENT))
			line->is_inline = line->has_name = line->is_done = 1;
		return;
	}
	if (line->position == 2 && line->is_long) {
		line->options_over = 1;
		return;
	}
	line->is_harmless = line->count == 2 && (line->option[0] == TEXT_VERSION ? line->option[1] == 'n'
										  : line->option[0] == TEXT_HELP && !line->option[1]);
	if (line->letters & interpreter->letters)
		line->is_inline = 1;
	for (__u32 index = 0; index < CT_MAX_INTERPRETER_NAMES; index++) {
		if (index >= interpreter->option_count)
			break;
		if (line->option[0] == interpreter->options[index][0] && line->option[1] == interpreter->options[index][1])
			line->is_inline = 1;
	}
	line->is_value = line->flags & CT_INTERPRETER_FLAG_EVERY_ARGUMENT && line->letters & LETTERS_O;
}

static __always_inline void end_argument(struct arguments *line, struct code_interpreter *interpreter)
{
	struct interpreting *process;

	if (line->count++ == 0)
		return;
	if (line->is_value) {
		line->is_value = 0;
		return;
	}
	if (line->is_option && !line->options_over) {
		end_option(line, interpreter);
		return;
	}
	if (line->is_loaded && !line->name_passed)
		line->name_passed = 1;
	else
		line->has_name = line->options_over = 1;
	process = bpf_map_lookup_elem(&interpreting, &line->process);
	if (process) {
		__u8 count = process->names_count;
		if (count < MAX_NAMES) {
			process->names[count & (MAX_NAMES - 1)] = line->name.hash;
			process->names_count = count + 1;
		} else {
			process->any = 1;
			line->is_done = 1;
		}
	}
	if (!(line->flags & CT_INTERPRETER_FLAG_EVERY_ARGUMENT))
		line->is_done = 1;
}

static long take_byte(__u32 index, struct arguments *line)
{
	const __u32 first = 0;
	__u8 byte = 0;
	struct code_settings *settings;

	if (bpf_copy_from_user(&byte, 1, line->text + index)) {
		line->is_broken = 1;
		return 1;
	}
	if (byte) {
		argument_add(line, byte);
		return 0;
	}
	settings = bpf_map_lookup_elem(&code, &first);
	if (!settings)
		return 1;
	end_argument(line, &settings->interpreters[line->interpreter & (CT_MAX_INTERPRETERS - 1)]);
	argument_begin(line);
	return line->is_done || line->count >= line->limit ? 1 : 0;
}

static const struct interpreting no_names = { 0 };
static const struct arguments no_arguments = { 0 };

/*
 * The process begins to be an interpreter: which of its arguments are code. At most `limit` of them in `bytes` from `text` on, each
 * with a NUL.
 * Returns whether it is given code in a way that is forbidden to it.
 */
static __always_inline int begin_interpreting(struct code_settings *settings, __u32 index, unsigned long text,
					      unsigned long bytes, __u32 limit, int is_loaded)
{
	struct arguments line;
	struct interpreting *process;

	BEGIN_UNKNOWN(line, no_arguments);
	line.text = (const char *)text;
	line.limit = limit;
	line.interpreter = index;
	line.is_loaded = is_loaded;
	line.process = key_of(bpf_get_current_task_btf());
	line.flags = settings->interpreters[index & (CT_MAX_INTERPRETERS - 1)].flags;
	if (is_loaded)
		line.flags |= CT_INTERPRETER_FLAG_EVERY_ARGUMENT;
	bpf_map_update_elem(&interpreting, &line.process, &no_names, BPF_ANY);
	process = bpf_map_lookup_elem(&interpreting, &line.process);
	if (!process) {
		/* Nobody could judge it. */
		bpf_send_signal(SIGKILL);
		return 0;
	}
	process->interpreter = index;
	bpf_loop(bytes > MAX_ARGS ? MAX_ARGS : bytes, take_byte, &line, 0);
	process = bpf_map_lookup_elem(&interpreting, &line.process);
	if (process && !line.is_done && (line.is_broken || (limit == ALL_ARGUMENTS ? bytes > MAX_ARGS : line.count < limit)))
		process->any = 1;
	if (!(line.flags & CT_INTERPRETER_FLAG_INLINE_FORBIDDEN))
		return 0;
	if (line.is_inline)
		return 1;
	/* It reads its standard input, then. */
	return !line.has_name && !(line.is_harmless && line.count == 2);
}

static __always_inline int takes_for_code(struct code_settings *settings, struct interpreting *process, struct name *name)
{
	struct code_interpreter *interpreter =
		&settings->interpreters[process->interpreter & (CT_MAX_INTERPRETERS - 1)];

	for (__u32 index = 0; index < CT_MAX_INTERPRETER_NAMES; index++) {
		struct code_ending *ending = &interpreter->endings[index];
		if (index >= interpreter->ending_count)
			break;
		if ((name->tail[0] & ending->mask[0]) == ending->text[0] &&
		    (name->tail[1] & ending->mask[1]) == ending->text[1])
			return 1;
	}
	return 0;
}

static __always_inline int is_named(struct interpreting *process, struct name *name)
{
	if (process->any)
		return 1;
	for (__u32 index = 0; index < MAX_NAMES; index++) {
		if (index >= process->names_count)
			break;
		if (process->names[index] == name->hash)
			return 1;
	}
	return 0;
}

struct name_scan {
	const char *text;
	__u32 is_user;
	struct name name;
};

static long scan_byte(__u32 index, struct name_scan *scan)
{
	__u8 byte = 0;

	if (scan->is_user)
		bpf_probe_read_user(&byte, 1, scan->text + index);
	else
		bpf_probe_read_kernel(&byte, 1, scan->text + index);
	if (!byte)
		return 1;
	name_add(&scan->name, byte);
	return 0;
}

/* What the process that opens a file calls it, which is another name if that is a link. */
static __always_inline const char *opened_name(struct task_struct *task)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);

	if (task->thread_info.status & TS_COMPAT) {
		switch (regs->orig_ax) {
		case 5: /* open */
			return (const char *)(__u64)(__u32)regs->bx;
		case 295: /* openat */
		case 437: /* openat2 */
			return (const char *)(__u64)(__u32)regs->cx;
		}
		return 0;
	}
	switch (regs->orig_ax) {
	case 2: /* open */
		return (const char *)regs->di;
	case 257: /* openat */
	case 437: /* openat2 */
		return (const char *)regs->si;
	}
	return 0;
}

/* `what` it is that an interpreter opens here, or 0. */
static __always_inline __u8 interpreted(struct code_settings *settings, struct file *file, struct inode *inode,
					struct task_struct *task)
{
	struct process_key key = key_of(task);
	struct interpreting *process = bpf_map_lookup_elem(&interpreting, &key);
	struct name_scan scan;
	int is_pipe = (inode->i_mode & S_IFMT) == S_IFIFO;

	if (!process)
		return 0;
	scan.text = (const char *)file->f_path.dentry->d_name.name;
	scan.is_user = 0;
	for (int turn = 0; turn < 2; turn++) {
		BEGIN_UNKNOWN(scan.name, no_name);
		bpf_loop(4096, scan_byte, &scan, 0);
		if (is_named(process, &scan.name)) {
			if (!is_pipe)
				return CT_DENIED_WHAT_SCRIPT;
			/* As good as standard input: `sh compare.sh <(ls)`. */
			return settings->interpreters[process->interpreter & (CT_MAX_INTERPRETERS - 1)].flags &
					       CT_INTERPRETER_FLAG_INLINE_FORBIDDEN
				       ? CT_DENIED_WHAT_INLINE
				       : 0;
		}
		if (!is_pipe && takes_for_code(settings, process, &scan.name))
			return CT_DENIED_WHAT_SCRIPT;
		scan.text = opened_name(task);
		scan.is_user = 1;
		if (!scan.text)
			break;
	}
	return 0;
}

/* Part of audit_open. */
static __always_inline int code_open(struct file *file, struct inode *inode)
{
	struct code_settings *settings = code_settings();
	struct task_struct *task;
	__u16 type = inode->i_mode & S_IFMT;
	__u32 mode = file->f_mode, flags = file->f_flags;
	__u8 what;
	int ours, is_written;

	if (!settings)
		return 0;
	task = bpf_get_current_task_btf();
	ours = is_job(task);
	if (!ours && task->tgid != 1)
		return 0;
	is_written = (mode & FMODE_WRITE || flags & O_TRUNC) && has_labels(inode);
	if (is_written && ours && is_running(settings, inode) &&
	    refuse(settings, CT_DENIED_WHAT_LIBRARY, inode, &file->f_path, 0, 1))
		return -EPERM;
	if (is_written)
		relabel(settings, inode, mode & FMODE_CREATED || flags & O_TRUNC || (flags & O_TMPFILE_BIT && !inode->i_nlink),
			!ours);
	if (!ours || !(mode & FMODE_READ) || flags & OPENED_TO_EXECUTE)
		return 0;
	if (type == S_IFREG ? is_trusted(settings, inode) : type != S_IFIFO)
		return 0;
	what = interpreted(settings, file, inode, task);
	if (!what || is_told(settings, what, inode))
		return 0;
	return refuse(settings, what, inode, &file->f_path, 0, 1);
}

/* The new program is in place, and its arguments lie on its stack, as in audit_exec. */
SEC("lsm.s/bprm_committed_creds")
int BPF_PROG(code_start, struct linux_binprm *bprm)
{
	struct code_settings *settings = code_settings();
	struct process_key key;
	struct inode *inode;
	int index;

	if (!settings || !in_job())
		return 0;
	inode = bprm->file->f_inode;
	index = find_interpreter(settings, inode);
	if (index < 0) {
		key = key_of(bpf_get_current_task_btf());
		bpf_map_delete_elem(&interpreting, &key);
		return 0;
	}
	if (begin_interpreting(settings, index, bprm->p, bprm->exec - bprm->p, bprm->argc, 0) &&
	    !is_told(settings, CT_DENIED_WHAT_INLINE, inode))
		refuse(settings, CT_DENIED_WHAT_INLINE, inode, &bprm->file->f_path, 0, 1);
	return 0;
}

/* Part of audit_fork: what was true of the parent is of the child. */
static __always_inline void code_forked(struct task_struct *parent, struct task_struct *child)
{
	struct process_key key;
	struct interpreting *process;

	if (!code_settings())
		return;
	key = key_of(parent);
	process = bpf_map_lookup_elem(&interpreting, &key);
	if (!process)
		return;
	key = key_of(child);
	if (bpf_map_update_elem(&interpreting, &key, process, BPF_ANY))
		bpf_send_signal(SIGKILL);
}

/* Part of audit_exit. */
static __always_inline void code_ended(struct task_struct *task)
{
	struct process_key key;

	if (!code_settings())
		return;
	key = key_of(task);
	bpf_map_delete_elem(&interpreting, &key);
}

/* --- Memory --- */

SEC("lsm.s/mmap_file")
int BPF_PROG(code_map, struct file *file, unsigned long wanted, unsigned long protection, unsigned long flags, int before)
{
	struct code_settings *settings;
	struct task_struct *task;
	struct inode *inode;
	struct process_key key;
	unsigned long start;
	int result, index;

	if (before || !(protection & PROT_EXEC) || !file)
		return before;
	settings = code_settings();
	if (!settings || !in_job())
		return 0;
	inode = file->f_inode;
	result = judge(settings, file, inode, CT_DENIED_WHAT_LIBRARY);
	if (result)
		return result;
	if (inode->i_sb->s_dev != constants.root_device)
		note_running(inode);
	/* `ld.so python3 …`, and programs with an interpreter as a library. */
	index = find_interpreter(settings, inode);
	if (index < 0)
		return 0;
	task = bpf_get_current_task_btf();
	key = key_of(task);
	if (bpf_map_lookup_elem(&interpreting, &key))
		return 0;
	start = task->mm->arg_start;
	if (!begin_interpreting(settings, index, start, task->mm->arg_end - start, ALL_ARGUMENTS, 1))
		return 0;
	return refuse(settings, CT_DENIED_WHAT_INLINE, inode, &file->f_path, 0, 1);
}

SEC("lsm/file_mprotect")
int BPF_PROG(code_protect, struct vm_area_struct *area, unsigned long wanted, unsigned long protection, int before)
{
	struct code_settings *settings;
	struct file *file;
	struct inode *inode;

	if (before || !(protection & PROT_EXEC))
		return before;
	settings = code_settings();
	if (!settings || area->vm_flags & VM_EXEC || !in_job())
		return 0;
	file = area->vm_file;
	if (!file)
		return 0;
	inode = file->f_inode;
	/* Shared memory without a name is a file of the kernel's own. */
	if (inode->i_flags & S_PRIVATE || is_trusted(settings, inode) || is_told(settings, CT_DENIED_WHAT_MPROTECT, inode))
		return 0;
	return refuse(settings, CT_DENIED_WHAT_MPROTECT, inode, &file->f_path, 0, 0);
}

#endif

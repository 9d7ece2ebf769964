/*
 * Which code may run (docs/adr/0017-signed-code.md): files get a label when they are opened to be written, and are judged by it
 * when they are run, mapped to be executed, or read by an interpreter that takes them for code.
 *
 * Whatever fails here leaves a file without a label, which is not trusted.
 */
#ifndef CT_CODE_BPF_H
#define CT_CODE_BPF_H

#include "protocol.h"

#include "code.h"
#include "record.bpf.h"

#define EXT4_SUPER_MAGIC 0xef53
#define TMPFS_MAGIC 0x01021994
#define S_IFIFO 0010000
#define S_PRIVATE 0x200
#define FMODE_READ 1
#define O_TMPFILE_BIT 020000000
#define PROT_EXEC 4
#define VM_EXEC 4
#define HASH_ALGO_SHA256 4

/* Of a file that is about to be refused, or may be signed: 45 MB/s under emulation. */
#define MAX_JUDGED_BYTES (64 * 1024 * 1024)
/* Of each program that is started, for the record. */
#define MAX_RECORDED_BYTES (4 * 1024 * 1024)
/* In the map `told`, apart from what files are opened for. */
#define TOLD_CODE 0x100

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct code_settings);
} code SEC(".maps");

/*
 * No generation: the owner of an ext4 file can set that (EXT4_IOC_SETVERSION), and so could come back to a label. A number that
 * comes again finds no label, as labels go with their files.
 */
struct label_key {
	__u64 inode;
	__u32 device;
	__u32 zero;
};

/* Lowest byte: labels. The rest is set while somebody computes the digest, and says who. */
#define LABELS 0xffULL

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CODE_MAX_LABELS);
	__type(key, struct label_key);
	__type(value, __u64);
} labels SEC(".maps");

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

/* NULL: nothing is judged. */
static __always_inline struct code_settings *code_settings(void)
{
	const __u32 first = 0;
	struct code_settings *settings = bpf_map_lookup_elem(&code, &first);

	return settings && settings->mode ? settings : 0;
}

static __always_inline struct process_key key_of(struct task_struct *task)
{
	struct process_key key = { .started_ns = task->group_leader->start_time, .process = task->tgid };
	return key;
}

/* --- Labels --- */

static __always_inline int has_labels(struct inode *inode)
{
	unsigned long magic = inode->i_sb->s_magic;
	return (inode->i_mode & S_IFMT) == S_IFREG && (magic == EXT4_SUPER_MAGIC || magic == TMPFS_MAGIC);
}

static __always_inline struct label_key label_key(struct inode *inode)
{
	struct label_key key = { .inode = inode->i_ino, .device = inode->i_sb->s_dev };
	return key;
}

static __always_inline void set_label(struct label_key *key, __u64 label)
{
	if (!label || bpf_map_update_elem(&labels, key, &label, BPF_ANY))
		bpf_map_delete_elem(&labels, key);
}

/* A file is opened to be written; `emptied`: nothing of what it held stays. */
static __always_inline void relabel(struct code_settings *settings, struct inode *inode, int emptied, int by_init)
{
	struct label_key key = label_key(inode);
	__u32 phase = settings->phase;
	__u64 *label;

	if (by_init) {
		if (emptied)
			set_label(&key, CODE_LABEL_STEP);
		return;
	}
	if (phase != CT_PHASE_STAGE && phase != CT_PHASE_BUILD) {
		bpf_map_delete_elem(&labels, &key);
	} else if (emptied) {
		set_label(&key, phase == CT_PHASE_STAGE ? CODE_LABEL_SOURCE : CODE_LABEL_BUILT);
	} else {
		label = bpf_map_lookup_elem(&labels, &key);
		if (label && *label & ~(__u64)(CODE_LABEL_SOURCE | CODE_LABEL_BUILT | CODE_LABEL_STEP))
			set_label(&key, *label & (CODE_LABEL_SOURCE | CODE_LABEL_BUILT | CODE_LABEL_STEP));
	}
}

/* Deleted files and memfd are not trusted whatever their label: nobody can look at them afterwards. */
static __always_inline int is_trusted(struct code_settings *settings, struct inode *inode)
{
	struct label_key key;
	__u64 *label;

	if (inode->i_sb->s_dev == constants.root_device)
		return 1;
	if (!has_labels(inode) || !inode->i_nlink)
		return 0;
	key = label_key(inode);
	label = bpf_map_lookup_elem(&labels, &key);
	return label && *label & settings->trusted & LABELS;
}

/* To write to it would be to run what is written. Programs are protected by the kernel (ETXTBSY), libraries are not. */
static __always_inline int is_running(struct code_settings *settings, struct inode *inode)
{
	struct label_key key = label_key(inode);
	__u64 *label = bpf_map_lookup_elem(&labels, &key);

	return settings->phase == CT_PHASE_FETCH && label && *label & CODE_LABEL_MAPPED && *label & settings->trusted &&
	       inode->i_mapping->i_mmap.rb_root.rb_node;
}

static __always_inline void note_running(struct inode *inode)
{
	struct label_key key = label_key(inode);
	__u64 *label = bpf_map_lookup_elem(&labels, &key);

	if (label && !(*label & CODE_LABEL_MAPPED))
		__sync_fetch_and_or(label, CODE_LABEL_MAPPED);
}

/* A file goes for good, not just out of the kernel's memory. */
SEC("fentry/clear_inode")
int BPF_PROG(code_gone, struct inode *inode)
{
	struct code_settings *settings = code_settings();
	struct label_key key;

	if (!settings || !has_labels(inode) || (inode->i_nlink && inode->i_sb->s_magic != TMPFS_MAGIC))
		return 0;
	key = label_key(inode);
	bpf_map_delete_elem(&labels, &key);
	return 0;
}

/* --- Digests --- */

/* Where `digest` lies among the signed ones, by halves. */
struct digest_search {
	__u64 digest[4];
	__u32 low, high;
	__u32 found;
};

static const struct digest_search no_search = { 0 };

static long halve(__u32 index, struct digest_search *search)
{
	const __u32 first = 0;
	struct code_settings *settings = bpf_map_lookup_elem(&code, &first);
	__u32 middle = (search->low + search->high) / 2;
	__u64 *entry;

	if (!settings || search->low >= search->high || middle >= CT_MAX_SIGNED_DIGESTS)
		return 1;
	entry = settings->digests[middle];
	for (int word = 0; word < 4; word++) {
		__u64 ours = search->digest[word], theirs = entry[word];
		if (ours == theirs)
			continue;
		if (ours < theirs)
			search->high = middle;
		else
			search->low = middle + 1;
		return 0;
	}
	search->found = 1;
	return 1;
}

static __always_inline int is_signed(struct code_settings *settings, const __u64 digest[4])
{
	struct digest_search search;

	BEGIN_UNKNOWN(search, no_search);
	search.high = settings->digest_count;
	for (int word = 0; word < 4; word++)
		search.digest[word] = __builtin_bswap64(digest[word]);
	bpf_loop(16, halve, &search, 0);
	return search.found;
}

/*
 * Computes the digest, zeros if that fails. Returns whether it is a signed one, which the file's label then says until it is
 * written again. Somebody may write meanwhile: who opens a file to write takes our mark away, and without the mark there is
 * no label.
 */
static __always_inline int check_digest(struct code_settings *settings, struct file *file, struct inode *inode,
					__u64 digest[4])
{
	struct label_key key = label_key(inode);
	__u64 *label, before, mark = 0;

	if (inode->i_size > MAX_JUDGED_BYTES)
		return 0;
	if (settings->digest_count && has_labels(inode) && inode->i_nlink && inode->i_writecount.counter <= 0) {
		label = bpf_map_lookup_elem(&labels, &key);
		before = label ? *label & LABELS : 0;
		mark = bpf_ktime_get_ns() << 20 | (bpf_get_smp_processor_id() + 1) << 8 | before;
		if (bpf_map_update_elem(&labels, &key, &mark, BPF_ANY))
			mark = 0;
	}
	if (bpf_ima_file_hash(file, digest, 32) != HASH_ALGO_SHA256) {
		__builtin_memset(digest, 0, 32);
		return 0;
	}
	if (!mark)
		return 0;
	label = bpf_map_lookup_elem(&labels, &key);
	if (!is_signed(settings, digest)) {
		if (label && *label == mark)
			set_label(&key, before);
		return 0;
	}
	if (!label || __sync_val_compare_and_swap(label, mark, before | CODE_LABEL_SIGNED) != mark)
		return 0;
	/* What was ours may have been taken out of the map in the meantime. */
	label = bpf_map_lookup_elem(&labels, &key);
	return label && *label & CODE_LABEL_SIGNED && inode->i_writecount.counter <= 0;
}

/* --- Verdicts --- */

#define DENIED_SPACE (sizeof(struct denied_record) + MAX_PATH + 256)

/* In mode `audit`: whether it has been said already, of this process. */
static __always_inline int is_told(struct code_settings *settings, __u8 what, struct inode *inode)
{
	const __u8 yes = 1;
	struct told_key key = { .what = TOLD_CODE | what };

	if (settings->mode != CT_CODE_MODE_AUDIT)
		return 0;
	key.started_ns = bpf_get_current_task_btf()->group_leader->start_time;
	key.inode = inode->i_ino;
	key.generation = inode->i_generation;
	key.device = inode->i_sb->s_dev;
	/* The kernel gives an int, which is not extended. */
	return (int)bpf_map_update_elem(&told, &key, &yes, BPF_NOEXIST) == -EEXIST;
}

/* Records it, and returns what the hook has to. `can_resolve`: where bpf_d_path may be called. */
static __always_inline int refuse(struct code_settings *settings, __u8 what, struct inode *inode, struct path *path,
				  const __u64 *digest, int can_resolve)
{
	struct denied_record *record = BEGIN(DENIED_SPACE);
	__u32 mode = settings->mode;
	char *text;
	long length;

	if (record) {
		__builtin_memset(record, 0, sizeof *record);
		fill(&record->head, CT_PROCESS_RECORD_DENIED, sizeof *record);
		record->what = what;
		record->device = inode->i_sb->s_dev;
		if (digest)
			__builtin_memcpy(record->digest, digest, sizeof record->digest);
		text = (char *)(record + 1);
		if (can_resolve) {
			length = bpf_d_path(path, text, MAX_PATH) - 1;
			if (length < 0 || length >= MAX_PATH) {
				record->head.flags = CT_CUT;
				length = 0;
			}
		} else {
			length = write_path(path, path->dentry, text, &record->head.flags);
		}
		record->path_bytes = length;
		record->head.bytes = sizeof *record + length;
		if (mode == CT_CODE_MODE_AUDIT)
			record->head.flags |= CT_NOT_DENIED;
		submit(record);
	}
	if (mode == CT_CODE_MODE_AUDIT)
		return 0;
	if (mode != CT_CODE_MODE_ENFORCE || what == CT_DENIED_WHAT_INLINE)
		bpf_send_signal(SIGKILL);
	return -EPERM;
}

/* By path, or as part of opening it. */
SEC("lsm/path_truncate")
int BPF_PROG(code_truncate, struct path *path, int before)
{
	struct code_settings *settings = code_settings();
	struct inode *inode;

	if (before || !settings || !in_job())
		return before;
	inode = path->dentry->d_inode;
	if (!has_labels(inode))
		return 0;
	if (is_running(settings, inode))
		before = refuse(settings, CT_DENIED_WHAT_LIBRARY, inode, path, 0, 0);
	if (!before)
		relabel(settings, inode, 0, 0);
	return before;
}

/* Where the hook may sleep. */
static __always_inline int judge(struct code_settings *settings, struct file *file, struct inode *inode, __u8 what)
{
	__u64 digest[4] = { 0 };

	if (is_trusted(settings, inode))
		return 0;
	if (settings->phase == CT_PHASE_STAGE && what == CT_DENIED_WHAT_LIBRARY) {
		/* The tree that is staged asks by mapping each file once (guest-agent/tree.c). Nothing runs then. */
		if (settings->digest_count)
			check_digest(settings, file, inode, digest);
		return 0;
	}
	if (is_told(settings, what, inode))
		return 0;
	if (check_digest(settings, file, inode, digest))
		return 0;
	return refuse(settings, what, inode, &file->f_path, digest, 1);
}

/* Programs, and scripts before their interpreters: each comes here as `bprm->file`. */
SEC("lsm.s/bprm_check_security")
int BPF_PROG(code_exec, struct linux_binprm *bprm, int before)
{
	struct code_settings *settings = code_settings();

	if (before || !settings || !in_job())
		return before;
	return judge(settings, bprm->file, bprm->file->f_inode,
		     bprm->buf[0] == '#' && bprm->buf[1] == '!' ? CT_DENIED_WHAT_SCRIPT : CT_DENIED_WHAT_EXEC);
}

/* --- Interpreters --- */

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

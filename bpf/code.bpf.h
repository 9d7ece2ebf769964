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

/* NULL: nothing is judged. */
static __always_inline struct code_settings *code_settings(void)
{
	const __u32 first = 0;
	struct code_settings *settings = bpf_map_lookup_elem(&code, &first);

	return settings && settings->mode ? settings : 0;
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

#endif

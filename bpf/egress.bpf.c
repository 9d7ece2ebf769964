/*
 * What a job may do with sockets, decided in the guest's kernel. Both programs only shape what the job sees and tell what
 * it tried: whether anything leaves the VM is decided outside it.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "address.h"
#include "protocol.h"

/* <sys/socket.h> does not compile for the BPF target; the kernel ABI fixes the numbers. */
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define AF_NETLINK 16
#define AF_PACKET 17
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define EPERM 1

/* Attempts told per second; a flood must not keep the egress helper or the host busy. The rest is counted. */
#define ATTEMPTS_PER_SECOND 32

/* As docs/guest-link.md lays it out. */
struct attempt {
	__u8 kind;
	__u8 family;
	__be16 port;
	__be32 address[4];
	__be32 pid;
	__be32 uid;
	char command[16];
	__be32 suppressed;
};

_Static_assert(sizeof(struct attempt) == CT_ATTEMPT_BYTES, "docs/guest-link.md");

/* The egress helper's listeners: slot 0 for IPv4, 1 for IPv6. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} listeners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16384);
} attempts SEC(".maps");

/* Read by the egress helper: `suppressed` first. */
struct tally {
	__u64 suppressed;
	__u64 second;
	__u64 told;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tally);
} tallies SEC(".maps");

/* Space for a record of zeros, or NULL if it must not be told. Two CPUs may tell one or two more than the limit. */
static __always_inline struct attempt *begin_attempt(void)
{
	const __u32 slot = 0;
	__u64 second = bpf_ktime_get_ns() / 1000000000;
	struct attempt *attempt = 0;
	struct tally *tally = bpf_map_lookup_elem(&tallies, &slot);

	if (!tally)
		return 0;
	if (tally->second != second) {
		tally->second = second;
		tally->told = 0;
	}
	if (__sync_fetch_and_add(&tally->told, 1) < ATTEMPTS_PER_SECOND)
		attempt = bpf_ringbuf_reserve(&attempts, sizeof *attempt, 0);
	if (attempt)
		__builtin_memset(attempt, 0, sizeof *attempt);
	else
		__sync_fetch_and_add(&tally->suppressed, 1);
	return attempt;
}

/*
 * The guest has no network card: its routing table makes every address local, and this program, at the sk_lookup hook
 * (Documentation/bpf/prog_sk_lookup.rst), picks the listener for TCP. The hook sees the original address and port, and so
 * does getsockname(2) on the accepted socket, without any rewriting of packets. The VM's own addresses are left alone, so
 * that services inside it keep working.
 *
 * Without a listener in the map connections are dropped: nothing falls back to whoever happens to listen. A datagram to
 * anybody but the resolver finds no socket, and the kernel answers that the port is unreachable.
 */
SEC("sk_lookup")
int egress_steer(struct bpf_sk_lookup *ctx)
{
	const __u32 slot = ctx->family == AF_INET ? 0 : 1;
	__u32 address[4] = { 0 };
	struct attempt *attempt;
	struct bpf_sock *listener;
	long refused;

	if (ctx->family == AF_INET) {
		address[0] = bpf_ntohl(ctx->local_ip4);
		if (stays_inside_ipv4(address[0]))
			return SK_PASS;
	} else {
		address[0] = bpf_ntohl(ctx->local_ip6[0]);
		address[1] = bpf_ntohl(ctx->local_ip6[1]);
		address[2] = bpf_ntohl(ctx->local_ip6[2]);
		address[3] = bpf_ntohl(ctx->local_ip6[3]);
		if (stays_inside_ipv6(address))
			return SK_PASS;
	}
	if (ctx->protocol == IPPROTO_TCP) {
		listener = bpf_map_lookup_elem(&listeners, &slot);
		if (!listener)
			return SK_DROP;
		refused = bpf_sk_assign(ctx, listener, 0);
		bpf_sk_release(listener);
		return refused ? SK_DROP : SK_PASS;
	}
	if (ctx->family == AF_INET && address[0] == RESOLVER_IPV4 && ctx->local_port == 53)
		return SK_PASS;
	attempt = begin_attempt();
	if (!attempt)
		return SK_DROP;
	/* Whose datagram it is cannot be told here: the hook may run on behalf of another process. */
	attempt->kind = CT_ATTEMPT_UDP;
	attempt->family = ctx->family;
	attempt->port = bpf_htons(ctx->local_port);
	attempt->address[0] = bpf_htonl(address[0]);
	attempt->address[1] = bpf_htonl(address[1]);
	attempt->address[2] = bpf_htonl(address[2]);
	attempt->address[3] = bpf_htonl(address[3]);
	bpf_ringbuf_submit(attempt, 0);
	return SK_DROP;
}

/*
 * Sockets that a job has a use for in a VM without a network card. Left out, because what they reach is nobody's
 * business in here or the kernel code behind them is seldom needed and often broken: raw and packet sockets, ping
 * sockets, SCTP and other transports (nothing would carry them), AF_VSOCK (the host's channels), AF_ALG, Bluetooth, CAN,
 * TIPC and the like.
 */
static __always_inline int is_ordinary(int family, int type, int protocol)
{
	switch (family) {
	case AF_UNIX:
	case AF_NETLINK: /* getaddrinfo(3) asks for the addresses of interfaces. */
		return 1;
	case AF_INET:
	case AF_INET6:
		if (type == SOCK_STREAM)
			/* Multipath TCP falls back to TCP when it connects; Go's listeners ask for it. */
			return protocol == 0 || protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP;
		return type == SOCK_DGRAM && (protocol == 0 || protocol == IPPROTO_UDP);
	default:
		return 0;
	}
}

SEC("lsm/socket_create")
int BPF_PROG(egress_socket, int family, int type, int protocol, int kern, int before)
{
	__u64 ids = bpf_get_current_pid_tgid();
	struct attempt *attempt;

	if (before)
		return before;
	/* The kernel's own sockets, and those of PID 1. */
	if (kern || ids >> 32 == 1 || is_ordinary(family, type, protocol))
		return 0;
	attempt = begin_attempt();
	if (!attempt)
		return -EPERM;
	attempt->kind = family == AF_PACKET ? CT_ATTEMPT_PACKET_SOCKET
		      : (family == AF_INET || family == AF_INET6) && type == SOCK_RAW ? CT_ATTEMPT_RAW_SOCKET
										     : CT_ATTEMPT_OTHER_SOCKET;
	attempt->family = family;
	attempt->pid = bpf_htonl(ids >> 32);
	attempt->uid = bpf_htonl((__u32)bpf_get_current_uid_gid());
	bpf_get_current_comm(attempt->command, sizeof attempt->command);
	bpf_ringbuf_submit(attempt, 0);
	return -EPERM;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

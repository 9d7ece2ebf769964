/*
 * Steers every TCP connection that would leave the VM into one listening socket of the guest agent.
 *
 * The guest has no network card: its routing table makes every address local, and this program, at the sk_lookup hook
 * (Documentation/bpf/prog_sk_lookup.rst), picks the listener. The hook sees the original address and port, and so does
 * getsockname(2) on the accepted socket, without any rewriting of packets. Loopback is left alone, so that services
 * inside the VM keep working.
 *
 * Without a listener in the map connections are dropped: nothing falls back to whoever happens to listen.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "address.h"

/* <sys/socket.h> does not compile for the BPF target; the kernel ABI fixes the number. */
#define AF_INET 2

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} egress_listener SEC(".maps");

SEC("sk_lookup")
int egress_steer(struct bpf_sk_lookup *ctx)
{
	const __u32 slot = 0;
	struct bpf_sock *listener;
	long refused;

	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	if (ctx->family == AF_INET) {
		if (stays_inside_ipv4(bpf_ntohl(ctx->local_ip4)))
			return SK_PASS;
	} else {
		const __u32 address[4] = {
			bpf_ntohl(ctx->local_ip6[0]),
			bpf_ntohl(ctx->local_ip6[1]),
			bpf_ntohl(ctx->local_ip6[2]),
			bpf_ntohl(ctx->local_ip6[3]),
		};

		if (stays_inside_ipv6(address))
			return SK_PASS;
	}
	listener = bpf_map_lookup_elem(&egress_listener, &slot);
	if (!listener)
		return SK_DROP;
	refused = bpf_sk_assign(ctx, listener, 0);
	bpf_sk_release(listener);
	return refused ? SK_DROP : SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

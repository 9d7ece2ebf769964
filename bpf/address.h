/*
 * Which destinations stay inside the VM. Shared by the BPF program and its native test, so no includes of either world:
 * the includer defines the integer types.
 */
#ifndef CT_ADDRESS_H
#define CT_ADDRESS_H

/* 198.18.0.1, where names are asked for, and 198.18.0.2, the VM's own address (RFC 2544: never routed). */
#define RESOLVER_IPV4 0xc6120001
#define OWN_IPV4 0xc6120002

/*
 * 127.0.0.0/8 (RFC 1122), the VM's own address, and 0.0.0.0, which connect(2) takes for "this host". Host byte order.
 */
static inline int stays_inside_ipv4(__u32 address)
{
	return (address >> 24) == 127 || address == OWN_IPV4 || address == 0;
}

/*
 * ::1, ::, the VM's own fd63:7463::2, and the IPv4 ones in their mapped form ::ffff:a.b.c.d (RFC 4291, 2.5.2 to
 * 2.5.5.2). Four words in host byte order, most significant first.
 */
static inline int stays_inside_ipv6(const __u32 address[4])
{
	if (address[0] == 0xfd637463 && !address[1] && !address[2])
		return address[3] == 2;
	if (address[0] || address[1])
		return 0;
	if (address[2] == 0)
		return address[3] <= 1;
	return address[2] == 0xffff && stays_inside_ipv4(address[3]);
}

#endif

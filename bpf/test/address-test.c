/* Native test of address.h: prints one line per failure; exit 1 if there was any. */
#include <arpa/inet.h>
#include <linux/types.h>
#include <stdio.h>

#include "../address.h"

static int failures, cases;

static void expect(const char *text, int inside)
{
	struct in6_addr v6;
	struct in_addr v4;
	int result;

	cases++;
	if (inet_pton(AF_INET, text, &v4) == 1) {
		result = stays_inside_ipv4(ntohl(v4.s_addr));
	} else if (inet_pton(AF_INET6, text, &v6) == 1) {
		__u32 words[4];

		for (int i = 0; i < 4; i++)
			words[i] = ntohl(v6.s6_addr32[i]);
		result = stays_inside_ipv6(words);
	} else {
		result = !inside;
	}
	if (result != inside) {
		printf("not ok: %s should %s the VM\n", text, inside ? "stay inside" : "leave");
		failures++;
	}
}

int main(void)
{
	static const char *const inside[] = { "127.0.0.1", "127.255.255.255", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1",
					      "::ffff:0.0.0.0", "198.18.0.2", "fd63:7463::2" };
	static const char *const outside[] = { "128.0.0.1", "126.255.255.255", "10.0.0.1", "169.254.169.254",
					       "0.0.0.1", "255.255.255.255", "::2", "fe80::1", "2001:db8::1",
					       "::ffff:10.0.0.1", "::fffe:127.0.0.1", "::127.0.0.1", "1::",
					       "64:ff9b::7f00:1", "198.18.0.1", "198.18.0.3", "198.19.0.2", "fd63:7463::1",
					       "fd63:7463::", "fd63:7463:0:1::2", "fd63:7463::1:2", "fd63:7464::2" };

	for (unsigned i = 0; i < sizeof inside / sizeof *inside; i++)
		expect(inside[i], 1);
	for (unsigned i = 0; i < sizeof outside / sizeof *outside; i++)
		expect(outside[i], 0);
	printf("address: %d cases, %d failed\n", cases, failures);
	return failures != 0;
}

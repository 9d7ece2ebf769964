/* What a job sees of a network in a VM without a network card. Nothing here reaches further than the loopback device. */
#ifndef CT_NETWORK_H
#define CT_NETWORK_H

#define RESOLVER_ADDRESS "198.18.0.1"
/* Addresses that are not loopback ones: without them glibc's AI_ADDRCONFIG would leave out a whole family. */
#define OWN_ADDRESS_IPV4 "198.18.0.2"
#define OWN_ADDRESS_IPV6 "fd63:7463::2"

struct network_sockets {
	int listeners[2]; /* IPv4, IPv6: for the connections that steering.c sends there. */
	int resolver;	  /* UDP, RESOLVER_ADDRESS port 53. */
};

/* Brings up lo, with every address there is local to it, and opens the sockets. Ends the VM if it cannot. */
void network_configure(struct network_sockets *sockets);

#endif

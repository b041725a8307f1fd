/* SPDX-License-Identifier: Apache-2.0
 *
 * Whose a packet is: its addresses and ports.
 */

struct header {
	u64 addresses; /* hashed; 0 where there is no IP header */
	u16 ident;     /* of IPv4, which its fragments have too */
	u8 protocol;
	u8 fragment;
};

/* The addresses and ports as they stand in the packet now, hashed, of a packet whose IP header is at `at`. TTL, checksums
 * and lengths stay out: they change at every router. 0 where there is no IP header to be seen. */
static __always_inline u64 flow_at(u64 at, struct header *seen)
{
	struct window ip;
	u64 hash;
	u32 ports = 0;
	u32 transport;
	u8 protocol, version;
	u16 fragment;

	window_open(&ip, at);
	version = WINDOW(&ip, u8, 0);
	if (version >> 4 == 4) {
		protocol = WINDOW(&ip, u8, 9);
		fragment = PACKET_NTOHS(WINDOW(&ip, u16, 6)) & 0x3fff; /* more fragments, or an offset */
		seen->protocol = protocol;
		seen->ident = WINDOW(&ip, u16, 4);
		seen->fragment = fragment != 0;
		transport = (version & 15) * 4;
		/* Later fragments have no ports. */
		if (fragment & 0x1fff)
			protocol = 0;
		hash = WINDOW(&ip, u32, 12) * 0x9E3779B97F4A7C15ull ^
		       WINDOW(&ip, u32, 16) * 0xC2B2AE3D27D4EB4Full;
	} else if (version >> 4 == 6) {
		protocol = WINDOW(&ip, u8, 6);
		seen->protocol = protocol;
		seen->fragment = protocol == 44;
		transport = 40;
		hash = (WINDOW(&ip, u64, 8) * 0x9E3779B97F4A7C15ull ^ WINDOW(&ip, u64, 16)) *
			       0x165667B19E3779F9ull ^
		       (WINDOW(&ip, u64, 24) * 0xC2B2AE3D27D4EB4Full ^ WINDOW(&ip, u64, 32)) *
			       0x27D4EB2F165667C5ull;
	} else {
		return 0;
	}
	seen->addresses = hash;
	if (protocol == 6 || protocol == 17 || protocol == 132 || protocol == 33 || protocol == 136) {
		if (transport == 20)
			ports = WINDOW(&ip, u32, 20);
		else if (transport == 40)
			ports = WINDOW(&ip, u32, 40);
		else
			ports = LOAD(u32, at + transport);
	}
	hash = (hash ^ ports) * 0x9E3779B97F4A7C15ull ^ protocol;
	return hash ? hash : 1;
}

static __always_inline u64 flow_of(const struct sk_buff_view *view, struct header *seen)
{
	u16 network = MEMBER(view, u16, sk_buff__network_header);

	if (!network || network == 0xffff)
		return 0;
	return flow_at(view->head + network, seen);
}

#ifdef PLAIN_HOPS
/* Making the flow out of the addresses takes longer than to see that they are what they were: those of IPv4, and the ports
 * behind them. TTL and checksum, which stand beside them, change at every router. */
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define PROTOCOL_AND_SOURCE 0x00ff0000ffffffffull
#else
#define PROTOCOL_AND_SOURCE 0xffffffff0000ff00ull
#endif

static __always_inline int is_same_flow(const struct path *path, const struct sk_buff_view *view)
{
	u16 network = MEMBER(view, u16, sk_buff__network_header);
	struct window ip;

	if (!path->network || path->network != network)
		return 0;
	window_open(&ip, view->head + network);
	return !(((path->ip[0] ^ WINDOW(&ip, u64, 8)) & PROTOCOL_AND_SOURCE) |
		 (path->ip[1] ^ WINDOW(&ip, u64, 16)));
}
#endif

static __always_inline void remember_header(struct path *path, const struct sk_buff_view *view)
{
#ifdef PLAIN_HOPS
	u16 network = MEMBER(view, u16, sk_buff__network_header);
	struct window ip;

	window_open(&ip, view->head + network);
	path->network = WINDOW(&ip, u8, 0) == 0x45 ? network : 0;
	path->ip[0] = WINDOW(&ip, u64, 8);
	path->ip[1] = WINDOW(&ip, u64, 16);
#endif
}

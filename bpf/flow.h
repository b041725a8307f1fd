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

/* The addresses and ports as they stand in the packet now, hashed. TTL, checksums and lengths stay out: they
 * change at every router. 0 where there is no IP header to be seen. */
static __always_inline u64 flow_of(const struct sk_buff_copy *copy, struct header *seen)
{
	u64 w[6] = {}; /* with the ports, where they follow at once */
	u16 network = MEMBER(copy, u16, sk_buff__network_header);
	u64 at = MEMBER(copy, u64, sk_buff__head) + network;
	u64 hash;
	u32 ports = 0;
	u32 transport;
	u8 *header = (u8 *)w;
	u8 protocol;

	if (!network || network == 0xffff)
		return 0;
	if (bpf_probe_read_kernel(w, sizeof(w), (void *)at))
		return 0;
	if (header[0] >> 4 == 4) {
		protocol = header[9];
		seen->protocol = protocol;
		seen->ident = w[0] >> 32;
		seen->fragment = (header[6] & 0x3f) || header[7]; /* more fragments, or an offset */
		transport = (header[0] & 15) * 4;
		/* Later fragments have no ports. */
		if ((header[6] & 0x1f) || header[7])
			protocol = 0;
		hash = (w[1] >> 32) * 0x9E3779B97F4A7C15ull ^ (w[2] & 0xffffffff) * 0xC2B2AE3D27D4EB4Full;
	} else if (header[0] >> 4 == 6) {
		protocol = header[6];
		seen->protocol = protocol;
		seen->fragment = protocol == 44;
		transport = 40;
		hash = (w[1] * 0x9E3779B97F4A7C15ull ^ w[2]) * 0x165667B19E3779F9ull ^
		       (w[3] * 0xC2B2AE3D27D4EB4Full ^ w[4]) * 0x27D4EB2F165667C5ull;
	} else {
		return 0;
	}
	seen->addresses = hash;
	if (protocol == 6 || protocol == 17 || protocol == 132 || protocol == 33 || protocol == 136) {
		if (transport == 20)
			ports = *(u32 *)(header + 20);
		else if (transport == 40)
			ports = *(u32 *)(header + 40);
		else
			bpf_probe_read_kernel(&ports, sizeof(ports), (void *)(at + transport));
	}
	hash = (hash ^ ports) * 0x9E3779B97F4A7C15ull ^ protocol;
	return hash ? hash : 1;
}

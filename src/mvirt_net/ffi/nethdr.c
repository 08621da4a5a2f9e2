/* The header before each frame in a virtio-net ring (virtio 1.2, 5.1.6). */
#include "core.h"

enum {
	HDR_F_NEEDS_CSUM = 1,
	HDR_GSO_NONE = 0,
};

uint32_t mv_net_hdr_size(uint64_t features)
{
	/* Only a legacy driver without mergeable buffers leaves num_buffers out (5.1.6.1). */
	if (features & (MV_F_VERSION_1 | MV_F_MRG_RXBUF))
		return sizeof(struct mv_net_hdr);
	return MV_NET_HDR_NUM_BUFFERS;
}

bool mv_net_hdr_allowed(const struct mv_net_hdr *hdr)
{
	/*
	 * No offload is offered, so none may be asked for. Other flag bits are to be ignored
	 * (5.1.6.2.2), and so is every field that belongs to an offload.
	 */
	return !(hdr->flags & HDR_F_NEEDS_CSUM) && hdr->gso_type == HDR_GSO_NONE;
}

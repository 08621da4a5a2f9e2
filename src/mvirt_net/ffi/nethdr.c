/* The header before each frame in a virtio-net ring (virtio 1.2, 5.1.6). */
#include "core.h"

uint32_t mv_net_hdr_size(uint64_t features)
{
	/* Only a legacy driver without mergeable buffers leaves num_buffers out (5.1.6.1). */
	if (features & (MV_F_VERSION_1 | MV_F_MRG_RXBUF))
		return sizeof(struct mv_net_hdr);
	return MV_NET_HDR_NUM_BUFFERS;
}

// How the blocks of a decode launch learn which of them is the last.
//
// Each counts itself in; the last one sets the counter back to zero. The counter must be zero before, and nobody
// promises anything about a workspace's content between launches. A memset before every launch would be right, and cost
// as much time as a short launch itself. So the counters lie in static device memory instead, which is zero from the
// loading of the module on, and every launch leaves them as it found them, however often a captured graph replays it.
// Launches that run at the same time must not share counters; as they must not share a workspace either, each
// workspace's address is given a page of counters of its own, for good. Should a process use more workspaces than there
// are pages, the launches of the later ones do count in their workspace, behind a memset.
#ifndef DOGE_KERNELS_ATTENTION_COUNTERS_H
#define DOGE_KERNELS_ATTENTION_COUNTERS_H

namespace doge {

constexpr int kCounterPages = 1024;  // a framework that takes workspaces from a pool has many addresses; 1 MiB
constexpr int kCountersPerPage = 256;

// The page of a workspace, the same whenever it is asked for; -1 when there is none left. May be called by any thread.
int counter_page(const void* workspace);

}  // namespace doge
#endif

"""Does the daemon stay what it was, whatever comes and goes? ``python -m bench.soak``.

Scenarios, each on a daemon of its own, which is a process like any other:

* `crowd`: many guests at once, each with DHCP, ARP and a ping;
* `cycles`: one NIC, a thousand frontends one after another;
* `restarts`: two guests, and a hundred daemons that are killed with frames in their hands;
* `traffic`: two guests that send each other numbered frames (`peer`), a third that floods them, is
  killed, and comes back (`visitor`).

Each gives a `Report`: figures, and checks with their bounds. A smaller scale of the same is among
the tests (``tests/test_soak.py``).
"""

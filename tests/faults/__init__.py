"""What the daemon makes of failing system calls, killed frontends, a full disk, its own death."""

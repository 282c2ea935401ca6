"""Routes of the copies that users take: backups of the home, and snapshots of the index."""

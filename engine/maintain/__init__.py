"""What is done to a store beside its service: indexes, repairs, measuring, removal, backups, migration."""

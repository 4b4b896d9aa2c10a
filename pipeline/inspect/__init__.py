"""Look at catalogs, a running plan or finished shards; nothing here changes them."""

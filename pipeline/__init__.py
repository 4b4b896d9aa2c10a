"""From catalogs and audio to token shards, on Ray.

Stages in order: `catalogs` (rows to records), `text` (records to prompts), `plan` (which clip goes
into which shard), `encode` (prompts to text states, audio to codes, shards, manifest).  `datadir`
is the data folder they write, `run` calls them in this order, `inspect` and `repair` look at the
folder and mend it.  README.md has the whole tour.
"""

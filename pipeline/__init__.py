"""From catalogs and audio to token shards, on Ray.

Stages, in order: `catalogs` (rows -> records), `text` (records -> prompts), `plan` (which clip goes
into which shard; frozen in `datadir`), `encode` (prompts -> states, audio -> codes, tars, commits,
manifest).  `run` calls them in this order.  `inspect` looks at the results; `repair` removes
garbage and encodes refused clips again.  README.md has a table of all files.
"""

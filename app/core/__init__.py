"""What the service can do, and how it runs it, on three shelves.

The contract:      fields, capability, catalog.
The engine:        service (the one door), submission, watchers, jobs;
                   job_store, job_reading, job_tables, group_commit, image_index, callbacks (what is durable);
                   database, sqlite_database, postgres_database, job_migrations (in what it is kept);
                   leases, server_identity, peers (how several servers share it);
                   dispatcher, queue_view, batch_processing, multi_gpu, running (what waits and where it goes);
                   worker, worker_handle, channel, context, results, crash_points (where it runs);
                   executors, ray_cluster, ray_worker, picture_store (how other machines take part);
                   model_offload, storage, engine_options.
The capabilities:  text_to_image, image_to_image, inpaint, outpaint; side by side, never importing each other.
"""

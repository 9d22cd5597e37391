"""The models: cache policy, pipelines, prompts, adapters, schedulers."""

"""The main job on real text, through the stock `openai` client: `make demo`."""

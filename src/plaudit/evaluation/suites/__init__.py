"""Benchmarks for reward models: how their files are read, and how their scores are computed."""

NAMES = {
    "rewardbench": "benchmarks.RewardBench",
    "rewardbench2": "benchmarks.RewardBench2",
    "rm-bench": "benchmarks.RMBench",
    "llmbar": "benchmarks.LLMBar",
    "judgebench": "benchmarks.JudgeBench",
}
"""Name of a benchmark -> its module here and its class; help lists the names without loading any."""

"""Benchmarks for reward models: how their files are read, and how their scores are computed."""

NAMES = {
    "rewardbench": "reward_bench.RewardBench",
    "rewardbench2": "reward_bench_2.RewardBench2",
    "rm-bench": "rm_bench.RMBench",
    "llmbar": "llmbar.LLMBar",
    "judgebench": "judge_bench.JudgeBench",
}
"""Name of a benchmark -> its module here and its class; help lists the names without loading any."""

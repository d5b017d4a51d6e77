"""The loop behind `prunekit train`: applications, checkpoints, results, quantization after training."""

"""What others watch a run with: TensorBoard, MLflow, Weights & Biases. Neither torch nor ray."""

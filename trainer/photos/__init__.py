"""Photos, their labels and saliency as training reads them; jobs that write a file for every photo."""

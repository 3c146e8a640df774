"""Name what is in pictures: ``python classify.py BUNDLE PICTURE…``."""

import sys

from engineworks import runtime


def main(bundle: str, *pictures: str) -> None:
    """Print each picture's five best classes."""
    with runtime.load(bundle) as model:
        print(f"{model.manifest.summary}\nbackend: {model.backend}")
        doubt = "" if model.manifest.weights.trained else "  (untrained: a guess)"
        for picture, predictions in zip(pictures, model.classify(pictures, k=5), strict=True):
            print(picture)
            for prediction in predictions:
                print(f"  {prediction.probability:6.1%}  {prediction.label}{doubt}")


if __name__ == "__main__":
    main(*sys.argv[1:])

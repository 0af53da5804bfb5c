// An engine that is ready before an image is chosen: a worker and its module take longer to start than an image to open.

import { start, type Engine } from 'oxcow';

let next: Promise<Engine> | undefined;

/** Starts one that nobody needs yet. */
export function prepareEngine(): void {
  if (next) return;
  const starting = start();
  next = starting;
  // What failed is tried again when there is somebody to tell.
  starting.catch(() => {
    if (next === starting) next = undefined;
  });
}

/** The one that is ready, or a new one. */
export function takeEngine(): Promise<Engine> {
  prepareEngine();
  const taken = next!;
  next = undefined;
  return taken;
}

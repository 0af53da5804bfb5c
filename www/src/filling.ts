// Clones fill themselves from their URL for as long as the page is open, whether or not somebody looks at them; what
// is not done goes on when the page is opened again.

import { httpSource, start, OxcowError, type DiskImage, type HttpSource, type WantedFile } from 'oxcow';

import { store, type UrlMark } from './store.js';
import { asError } from './trouble.js';

/** How far a clone is. */
export interface Filling {
  done: number;
  total: number;
  state: 'running' | 'failed';
  error?: OxcowError;
}

/** How long between two reports of progress, in milliseconds: a list is drawn anew for each. */
const PACE = 150;

/** The file on the server, if it is the one that a clone was begun from. */
export async function sourceOf(mark: UrlMark, signal?: AbortSignal): Promise<HttpSource> {
  const source = await httpSource(mark.url, signal && { signal });
  const other =
    source.size !== mark.size ||
    (mark.etag !== undefined && source.etag !== undefined
      ? source.etag !== mark.etag
      : mark.lastModified !== undefined && source.lastModified !== mark.lastModified);
  if (other) {
    throw new OxcowError(
      'changed',
      `The file at ${mark.url} has changed since the clone was begun, so that its parts would not fit together. What is in the clone already is kept`,
    );
  }
  return source;
}

/** Tells with the event `change` that one has got on. */
export class Fillings extends EventTarget {
  readonly states = new Map<string, Filling>();
  #held = new Map<string, { stop: AbortController; ended: Promise<void> }>();

  /** Fills a stored clone in the background of everything else, unless that is being done. */
  begin(name: string, mark: UrlMark): void {
    this.#hold(name, (signal) => this.#alone(name, mark, signal));
  }

  /** Fills a clone that is open anyway. */
  fill(name: string, image: DiskImage): void {
    this.#hold(name, (signal) => this.#hydrate(name, image, signal));
  }

  /** Ends the filling, so that somebody else can have the image. */
  async letGo(name: string): Promise<void> {
    const held = this.#held.get(name);
    held?.stop.abort();
    await held?.ended;
    this.states.delete(name);
  }

  #hold(name: string, work: (signal: AbortSignal) => Promise<void>): void {
    if (this.#held.has(name)) return;
    const stop = new AbortController();
    const run = async () => {
      try {
        await work(stop.signal);
        this.states.delete(name);
      } catch (error) {
        const { done = 0, total = 0 } = this.states.get(name) ?? {};
        if (stop.signal.aborted) this.states.delete(name);
        else this.states.set(name, { done, total, state: 'failed', error: asError(error) });
      }
      this.#held.delete(name);
      this.#changed();
    };
    this.#held.set(name, { stop, ended: run() });
  }

  async #alone(name: string, mark: UrlMark, signal: AbortSignal): Promise<void> {
    const engine = await start();
    try {
      const source = await sourceOf(mark, signal);
      const resolve = ({ role, depth }: WantedFile) => (role === 'backing' && depth === 1 ? source : undefined);
      const image = await engine.open({ opfs: store.path(name) }, { writable: true, resolve, signal });
      await this.#hydrate(name, image, signal);
      await image.close();
    } finally {
      await engine.close();
    }
  }

  async #hydrate(name: string, image: DiskImage, signal: AbortSignal): Promise<void> {
    let told = 0;
    const tell = (done: number, total: number) => {
      this.states.set(name, { done, total, state: 'running' });
      if (performance.now() - told < PACE) return;
      told = performance.now();
      this.#changed();
    };
    const { hydrated, total, regionBytes } = await image.hydration();
    tell(hydrated * regionBytes, total * regionBytes);
    const { neededBySnapshot } = await image.hydrate({ signal, onProgress: tell });
    // A snapshot that was taken before everything was there still reads from the URL.
    if (neededBySnapshot !== undefined) return;
    // Where a tab was closed in the middle of it, room may be marked as used that nothing uses.
    await image.repair('leaks', { signal });
    await image.flush();
    const { url: _, ...about } = await store.about(name);
    await store.setAbout(name, about);
  }

  #changed(): void {
    this.dispatchEvent(new Event('change'));
  }
}

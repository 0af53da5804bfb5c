// The engine in this thread: what the worker runs, and what Node uses directly.

import { cancelled } from './errors.js';
import { LocalImage, type Parts } from './local-image.js';
import { forReading, forWriting, type Reader } from './modules.js';
import { newImage, openEmpty } from './new-image.js';
import { controlled } from './run.js';
import { nameOf, openSource } from './source.js';
import type { Opened } from './storage/engine.js';
import type { Storage } from './storage/types.js';
import { toBigInt } from './stream.js';
import type { Engine, OpenOptions, SafetyReport, Source, Traffic } from './types.js';
import type { EngineControl, EngineOptions, EngineResolve, EngineSource } from './wasm/oxcow_reader.js';
import type { EngineCreateOptions, EngineImage } from './wasm/oxcow_web.js';
import type { CreateOptions, OverlayOptions } from './writing.js';

export { loadEngine } from './modules.js';

/** An engine whose modules this thread has loaded, or knows where to find. */
export class LocalEngine implements Engine {
  #images = new Set<LocalImage>();

  open(source: Source | Storage, options: OpenOptions = {}): Promise<LocalImage> {
    return this.#opened(options, async (opening, control) => {
      const writable = (options.writable || options.repair) ?? false;
      const engineSource = await opening.file(source, { name: options.name, writable });
      const engineOptions = {
        ...opening.options(writable),
        format: options.format,
        ignoreBacking: options.backing === 'ignore',
        ignoreDataFile: options.dataFile === 'ignore',
        repair: options.repair ?? false,
      };
      const opened = async (wasm: Reader, control: EngineControl) =>
        wasm.EngineImage.open(engineSource, engineOptions, opening.resolve, control);
      if (writable) return { engine: await opened(await forWriting(), control) };
      return {
        engine: await opened(await forReading(), control),
        // The same files once more, in the module with everything.
        again: async (control) => (await opened(await forWriting(), control)) as EngineImage,
      };
    });
  }

  create(storage: Storage, options: CreateOptions): Promise<LocalImage> {
    return this.#new(storage, options, async (opening) => ({
      ...newImage(options),
      size: toBigInt(options.size, 'size'),
      dataFile: options.dataFile && (await opening.file(options.dataFile, { writable: true, create: true })),
      dataFileRaw: options.dataFileRaw ?? false,
    }));
  }

  overlay(storage: Storage, backing: Source, options: OverlayOptions = {}): Promise<LocalImage> {
    return this.#new(storage, options, async (opening) => ({
      ...newImage(options),
      size: options.size === undefined ? undefined : toBigInt(options.size, 'size'),
      backing: await opening.file(backing, { name: nameOf(backing) ?? options.backingName }),
      backingName: options.backingName,
      backingFormat: options.backingFormat,
    }));
  }

  async clone(storage: Storage, source: Source, options: OverlayOptions = {}): Promise<LocalImage> {
    const clone = await this.overlay(storage, source, options);
    await clone.setCopyOnRead(true);
    return clone;
  }

  async inspect(source: Source, options: { name?: string; signal?: AbortSignal } = {}): Promise<SafetyReport> {
    const opened = await openSource(source, noTraffic(), options);
    try {
      const { inspect } = await forReading();
      return (await controlled(options, (control) => inspect(opened.engine, control))) as SafetyReport;
    } finally {
      await opened.close();
    }
  }

  async close(): Promise<void> {
    const closed = await Promise.allSettled([...this.#images].map((image) => image.close()));
    const failed = closed.find((result) => result.status === 'rejected');
    if (failed) throw failed.reason;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** A new image in an empty storage. */
  #new(
    storage: Storage,
    options: CreateOptions | OverlayOptions,
    wanted: (opening: Opening) => Promise<EngineCreateOptions>,
  ): Promise<LocalImage> {
    return this.#opened(options, async (opening, control) => {
      const { name, overwrite } = options;
      // Before the storage is touched: what fails here leaves nothing behind.
      const { EngineImage } = await forWriting();
      const engineWanted = await wanted(opening);
      const file = await openEmpty(storage, opening.traffic, {
        ...(name !== undefined && { name }),
        ...(overwrite !== undefined && { overwrite }),
        ...(options.signal && { signal: options.signal }),
      });
      opening.files.unshift(file);
      return { engine: await EngineImage.create(file.engine, engineWanted, opening.options(true), opening.resolve, control) };
    });
  }

  /** An image, or nothing that is left open. */
  async #opened(
    options: Pick<OpenOptions, 'cacheBytes' | 'resolve' | 'signal'>,
    open: (opening: Opening, control: EngineControl) => Promise<Pick<Parts, 'engine' | 'again'>>,
  ): Promise<LocalImage> {
    const opening = new Opening(options);
    const { traffic, files } = opening;
    try {
      const { signal } = options;
      const opened = await controlled(signal ? { signal } : {}, (control) => open(opening, control));
      const image = new LocalImage({ ...opened, traffic, files, closed: () => this.#images.delete(image) });
      this.#images.add(image);
      return image;
    } catch (error) {
      await opening.giveUp();
      throw error;
    }
  }
}

/** The files of an image that is being opened. */
class Opening {
  readonly traffic = noTraffic();
  readonly files: Opened[] = [];
  #given: Pick<OpenOptions, 'cacheBytes' | 'resolve' | 'signal'>;
  #writable = false;
  /** Kept for when the same image is opened again. */
  #answers = new Map<string, EngineSource>();

  constructor(given: Pick<OpenOptions, 'cacheBytes' | 'resolve' | 'signal'>) {
    this.#given = given;
  }

  readonly resolve: EngineResolve = async (wanted) => {
    const question = `${wanted.role} ${wanted.depth} ${wanted.name}`;
    const known = this.#answers.get(question);
    if (known) return known;
    const { resolve, signal } = this.#given;
    if (signal?.aborted) throw cancelled(signal);
    const found = await resolve?.(wanted);
    if (!found) return undefined;
    // The guest's data are where the image says; backing files are never written to.
    const writable = this.#writable && wanted.role === 'data-file' && wanted.depth === 0;
    const answer = await this.file(found, { name: nameOf(found) ?? wanted.name, writable });
    this.#answers.set(question, answer);
    return answer;
  };

  async file(
    source: Source | Storage,
    options: { name?: string | undefined; writable?: boolean; create?: boolean },
  ): Promise<EngineSource> {
    const opened = await openSource(source, this.traffic, { ...options, signal: this.#given.signal });
    this.files.push(opened);
    return opened.engine;
  }

  options(writable: boolean): EngineOptions {
    this.#writable = writable;
    return {
      format: undefined,
      ignoreBacking: false,
      ignoreDataFile: false,
      cacheBytes: this.#given.cacheBytes,
      writable,
      repair: false,
    };
  }

  /** Nothing came of it. */
  async giveUp(): Promise<void> {
    await Promise.allSettled(this.files.map((file) => file.giveUp()));
  }
}

function noTraffic(): Traffic {
  return { bytes: 0, reads: 0, written: 0, writes: 0 };
}

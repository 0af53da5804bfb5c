// A file on an HTTP server, read by range requests. Every answer is checked against the first one, so that a file
// that changes meanwhile is noticed before a byte of its new content is used.

import { asOxcowError, OxcowError } from '../errors.js';
import type { CustomSource, HttpOptions, HttpSource } from '../types.js';
import {
  checkEncoding,
  condition,
  contentRange,
  difference,
  refusal,
  versionOf,
  type ByteRange,
  type Version,
} from './answer.js';
import { exchange, type Body } from './exchange.js';
import { backOff, Failure, sleep } from './retry.js';
import { Slots } from './slots.js';

/**
 * How much the first request asks for: what `qemu-img create` puts before the data of an image with 64 KiB clusters
 * (header, refcounts, L1 table, mostly the first L2 table), and as far as reading ahead goes for that.
 */
const HEAD = 384 << 10;
/** The most that one request asks for when reads follow each other. */
const LONGEST_FETCH = 4 << 20;
/** A server that cannot be reached at all at first is more likely a wrong address: so many tries and no more. */
const FIRST_CONTACTS = 3;
/** Not for another server than the one that they were meant for. */
const SECRETS = ['authorization', 'cookie', 'proxy-authorization'];

/** Opens a file on an HTTP server with one request. `signal` stops the opening. */
export async function httpSource(
  url: string | URL,
  options: HttpOptions & { name?: string; signal?: AbortSignal } = {},
): Promise<HttpSource> {
  const { signal, name, ...rest } = options;
  const client = new Client(absolute(url), rest);
  const { version, head } = await client.open(signal);
  return new Opened(client, version, head, name);
}

/** The URL that is meant, seen from this page or worker. */
export function absolute(url: string | URL): URL {
  const scope = globalThis as { document?: Document; location?: Location };
  let found: URL;
  try {
    found = new URL(url, scope.document?.baseURI ?? scope.location?.href);
  } catch (error) {
    throw new OxcowError('io', `'${url}' is no URL`, { cause: error });
  }
  if (found.protocol !== 'http:' && found.protocol !== 'https:') {
    throw new OxcowError('io', `Only http and https URLs can be read, not '${found.protocol}'`);
  }
  return found;
}

/** The URL without what may be secret: user, password, signed queries. */
function shown(url: URL): string {
  return `${url.origin}${url.pathname}`;
}

/** What {@link Client.open} learns: the version, and the file's first bytes; all of them where ranges cannot be had. */
interface Opening {
  version: Version;
  head: Uint8Array;
}

class Opened implements HttpSource {
  readonly name: string;
  readonly size: number;
  readonly etag: string | undefined;
  readonly lastModified: string | undefined;
  readonly windowed: NonNullable<CustomSource['windowed']>;
  #client: Client;
  #version: Version;
  #head: Uint8Array;

  constructor(client: Client, version: Version, head: Uint8Array, name: string | undefined) {
    this.#client = client;
    this.#version = version;
    this.#head = head;
    this.name = name ?? client.name;
    this.size = version.size;
    this.etag = version.etag;
    this.lastModified = version.lastModified;
    this.windowed = head.length < version.size && client.windows;
  }

  async read(offset: number, length: number, options: { signal?: AbortSignal } = {}): Promise<Uint8Array> {
    const end = Math.min(offset + length, this.size);
    if (end <= offset) return new Uint8Array(0);
    const head = this.#head.subarray(offset, end);
    const bytes = new Uint8Array(end - offset);
    bytes.set(head);
    if (head.length < bytes.length) {
      await this.#client.fill(bytes, head.length, offset, this.#version, options.signal);
    }
    return bytes;
  }
}

class Client {
  readonly name: string;
  readonly windows: Exclude<CustomSource['windowed'], boolean | undefined>;
  #url: URL;
  /** Where redirections led: asked directly, so that all answers come from the same server. */
  #target: URL;
  #headers: Headers;
  #credentials: RequestCredentials | undefined;
  #fetch: typeof fetch;
  #cacheBytes: number;
  #retries: number;
  #retryDelay: number;
  #timeout: number;
  #slots: Slots;
  /** Until when the server asked not to be bothered, by `Date.now()`. */
  #heldUntil = 0;
  #condition: [string, string] | undefined;
  /** The file has changed: what was cached may still be read, nothing more is fetched. */
  #changed: OxcowError | undefined;

  constructor(url: URL, options: HttpOptions) {
    this.name = shown(url);
    this.#headers = new Headers(options.headers);
    if (url.username !== '' || url.password !== '') {
      // `fetch` refuses them inside the URL.
      const user = [url.username, url.password].map(decodeURIComponent).join(':');
      const encoded = btoa(String.fromCharCode(...new TextEncoder().encode(user)));
      if (!this.#headers.has('authorization')) this.#headers.set('authorization', `Basic ${encoded}`);
      url = new URL(url);
      url.username = url.password = '';
    }
    this.#url = this.#target = url;
    this.#credentials = options.credentials;
    // Called as a plain function: browsers' `fetch` refuses to be a method.
    const own = options.fetch;
    this.#fetch = (input, init) => (own ?? fetch)(input, init);
    const positive = (what: string, value: number, least: number) => {
      if (value >= least) return value;
      throw new OxcowError('out-of-range', `${what} must be at least ${least}, not ${value}`);
    };
    this.#cacheBytes = positive('cacheBytes', options.cacheBytes ?? 32 << 20, 0);
    this.#retries = positive('retries', options.retries ?? 5, 0);
    this.#retryDelay = positive('retryDelay', options.retryDelay ?? 200, 0);
    this.#timeout = positive('timeout', options.timeout ?? 20_000, 1);
    const parallel = positive('parallel', Math.floor(options.parallel ?? 8), 1);
    this.#slots = new Slots(parallel);
    this.windows = {
      windowBytes: positive('windowBytes', options.windowBytes ?? 128 << 10, 512),
      longestBytes: LONGEST_FETCH,
      cacheBytes: this.#cacheBytes,
      parallel,
    };
  }

  /** Asks for the first bytes: the answer tells the length, the version and whether ranges can be had. */
  open(signal: AbortSignal | undefined): Promise<Opening> {
    const range = { first: 0, last: HEAD - 1 };
    return this.#retrying(range, signal, FIRST_CONTACTS, () =>
      this.#ask(range, signal, async (response, body) => {
        const { status } = response;
        if (status === 200) return this.#whole(response, body);
        if (status === 416 && /^\s*bytes\s+\*\/0\s*$/i.test(response.headers.get('content-range') ?? '')) {
          return { version: versionOf(response, 0), head: new Uint8Array(0) };
        }
        if (status !== 206) throw refusal(response);
        checkEncoding(response);
        const got = contentRange(response);
        if (got.first !== 0 || got.last !== Math.min(range.last, got.size - 1)) {
          throw new Failure(`the server sent bytes ${got.first}-${got.last} of ${got.size}`);
        }
        const head = new Uint8Array(got.last + 1);
        await collect(body, head, 0, () => {});
        const version = versionOf(response, got.size);
        if (!this.#foreign()) this.#condition = condition(version);
        return { version, head };
      }),
    );
  }

  /** Reads the file from `offset + done` on into the rest of `into`, which stands for the bytes from `offset` on. */
  async fill(into: Uint8Array, done: number, offset: number, opened: Version, signal?: AbortSignal): Promise<void> {
    const last = offset + into.length - 1;
    const asked = { first: offset + done, last };
    await this.#slots.run(
      () =>
        this.#retrying(asked, signal, Infinity, async () => {
          if (this.#changed) throw this.#changed;
          if (done === into.length) return; // The connection broke behind the last byte.
          // What arrived before a connection broke is of the version that was opened: only the rest is asked for.
          const range = { first: offset + done, last };
          await this.#ask(range, signal, async (response, body) => {
            this.#check(response, range, opened);
            const start = done;
            await collect(body, into, start, (count) => (done = start + count));
          });
        }),
      signal,
    );
  }

  /** Whether an answer is the range asked for, of the version that was opened. */
  #check(response: Response, range: ByteRange, opened: Version): void {
    const { status } = response;
    if (status === 200) {
      this.#same(opened, versionOf(response, opened.size));
      throw new Failure('the server sent the whole file instead of the range');
    }
    if (status === 416) {
      const size = /\/(\d+)\s*$/.exec(response.headers.get('content-range') ?? '')?.[1];
      if (size !== undefined) this.#same(opened, { ...opened, size: Number(size) });
    }
    if (status !== 206) throw refusal(response);
    checkEncoding(response);
    const got = contentRange(response);
    this.#same(opened, versionOf(response, got.size));
    if (got.first !== range.first || got.last !== range.last) {
      throw new Failure(`the server sent bytes ${got.first}-${got.last} instead`);
    }
  }

  #same(opened: Version, now: Version): void {
    const what = difference(opened, now);
    if (what === undefined) return;
    this.#changed = new OxcowError('changed', `The file at ${this.name} has changed on the server: ${what}`);
    throw this.#changed;
  }

  /** Takes the whole file from a server that sends nothing less, if there is room for it. */
  async #whole(response: Response, body: Body): Promise<Opening> {
    const tooLong = (size: string) =>
      new Failure(
        `the server does not support range requests, and the file (${size}) does not fit into ` +
          `the ${this.#cacheBytes} bytes that may be kept`,
      );
    const told = response.headers.get('content-length');
    // The length of what is transferred: not the file's, where that is compressed on its way.
    const encoded = response.headers.get('content-encoding') !== null || response.type === 'cors';
    if (Number(told) > this.#cacheBytes) throw tooLong(`${told} bytes`);
    const parts: Uint8Array[] = [];
    let size = 0;
    for (let part = await body.next(); part; part = await body.next()) {
      size += part.length;
      if (size > this.#cacheBytes) throw tooLong(`at least ${size} bytes`);
      parts.push(part);
    }
    if (told !== null && !encoded && Number(told) !== size) {
      throw new Failure(`the answer ended after ${size} of ${told} bytes`, { passing: true });
    }
    const head = new Uint8Array(size);
    let at = 0;
    for (const part of parts) {
      head.set(part, at);
      at += part.length;
    }
    return { version: versionOf(response, size), head };
  }

  /** One request for a range. */
  #ask<T>(
    range: ByteRange,
    signal: AbortSignal | undefined,
    use: (response: Response, body: Body) => Promise<T>,
  ): Promise<T> {
    const target = this.#target;
    const headers = new Headers(this.#headers);
    if (target.origin !== this.#url.origin) SECRETS.forEach((name) => headers.delete(name));
    headers.set('range', `bytes=${range.first}-${range.last}`);
    const conditional = this.#condition !== undefined;
    if (this.#condition) headers.set(...this.#condition);
    const init: RequestInit = { headers, ...(this.#credentials && { credentials: this.#credentials }) };
    const options = { fetch: this.#fetch, url: target.href, init, timeout: this.#timeout, signal };
    return exchange(options, (response, body) => {
      if ([401, 403, 404, 410].includes(response.status) && target !== this.#url) {
        // Where a redirection led may be good for some time only.
        this.#target = this.#url;
        const { message } = refusal(response);
        throw new Failure(`${message} from ${shown(target)}`, { passing: 'at-once' });
      }
      if (response.status === 412 && conditional) {
        // Most likely the file has changed; the answer to the same request without a condition shows it, or that
        // the server does not understand conditions.
        this.#condition = undefined;
        throw new Failure(refusal(response).message, { passing: 'at-once' });
      }
      if (response.ok && response.redirected && response.url) this.#target = new URL(response.url);
      return use(response, body);
    });
  }

  /**
   * Whether the server is not the page's own: then headers other than `Range` would make the browser ask for
   * permission first, with a request of its own, and every answer is checked anyway.
   */
  #foreign(): boolean {
    const { location } = globalThis as { location?: Location };
    return location !== undefined && location.origin !== this.#target.origin;
  }

  /** Tries until it works, it cannot work, or it has failed too often; `contacts`: so often without any answer. */
  async #retrying<T>(
    range: ByteRange,
    signal: AbortSignal | undefined,
    contacts: number,
    attempt: () => Promise<T>,
  ): Promise<T> {
    let reached = false;
    for (let failures = 1; ; failures += 1) {
      const held = this.#heldUntil - Date.now();
      if (held > 0) await sleep(held, signal);
      try {
        return await attempt();
      } catch (error) {
        if (!(error instanceof Failure)) throw asOxcowError(error);
        if (error.passing === 'at-once') {
          // It has changed what is asked, and cannot happen again for the same reason: no failure of the server's.
          failures -= 1;
          continue;
        }
        reached ||= !error.unanswered;
        const unreachable = !reached && failures >= contacts;
        if (!error.passing || failures > this.#retries || unreachable) throw this.#told(error, range, failures);
        this.#heldUntil = Math.max(this.#heldUntil, Date.now() + error.wait);
        await sleep(Math.max(error.wait, backOff(failures, this.#retryDelay)), signal);
      }
    }
  }

  #told(failure: Failure, range: ByteRange, tries: number): OxcowError {
    const often = tries > 1 ? ` (tried ${tries} times)` : '';
    const cors =
      failure.unanswered && this.#foreign() ? '; or the server does not allow this page to read it (CORS)' : '';
    const what = `bytes ${range.first}-${range.last} of ${this.name}`;
    return new OxcowError('io', `Could not read ${what}: ${failure.message}${cors}${often}`, { cause: failure.cause });
  }
}

/** Puts a body into `into` from `start` on, which it must fill exactly; tells how many bytes it has put there. */
async function collect(body: Body, into: Uint8Array, start: number, tell: (count: number) => void): Promise<void> {
  let at = start;
  for (let part = await body.next(); part; part = await body.next()) {
    if (part.length > into.length - at) throw new Failure('the answer is longer than the range that it names');
    into.set(part, at);
    at += part.length;
    tell(at - start);
  }
  if (at < into.length) {
    // It ended in order, so the server believes that this was all: none of it is to be trusted.
    tell(0);
    throw new Failure(`the answer ended after ${at - start} of ${into.length - start} bytes`, { passing: true });
  }
}

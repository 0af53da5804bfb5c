// What an answer to a range request says, and whether that is what was asked for.

import { Failure, retryAfter } from './retry.js';

/** What tells one version of a file from another. */
export interface Version {
  /** The whole file's length in bytes. */
  size: number;
  etag: string | undefined;
  lastModified: string | undefined;
}

/** A range of a file; the last byte belongs to it, as in the headers. */
export interface ByteRange {
  first: number;
  last: number;
}

/** States that pass: time-outs, too many requests, servers and gateways in trouble. */
const PASSING = new Set([408, 425, 429, 500, 502, 503, 504]);

/** The failure that an answer other than 200 and 206 is. */
export function refusal(response: Response): Failure {
  const { status, statusText } = response;
  const passing = PASSING.has(status);
  const wait = passing ? retryAfter(response.headers.get('retry-after')) : undefined;
  const later = wait === undefined ? '' : `, to be tried again in ${Math.ceil(wait / 1000)} s`;
  return new Failure(`HTTP ${status}${statusText && ` ${statusText}`}${later}`, { passing, wait });
}

/** The range and the whole length that a 206 says it brings. */
export function contentRange(response: Response): ByteRange & { size: number } {
  const header = response.headers.get('content-range');
  if (header === null) {
    throw new Failure(
      response.type === 'cors'
        ? 'the server does not let this page see Content-Range: it must send ' +
          '"Access-Control-Expose-Headers: Content-Range, ETag"'
        : 'the server does not say which range it sends',
    );
  }
  const [, first, last, size] = /^\s*bytes\s+(\d+)-(\d+)\/(\d+)\s*$/i.exec(header)?.map(Number) ?? [];
  if (first === undefined || last === undefined || size === undefined || first > last || last >= size) {
    throw new Failure(`the server sent the range "${header}"`);
  }
  if (!Number.isSafeInteger(size)) throw new Failure(`the file is too long: ${header}`);
  return { first, last, size };
}

/** The version of the file that an answer is of. */
export function versionOf(response: Response, size: number): Version {
  const header = (name: string) => response.headers.get(name) ?? undefined;
  return { size, etag: header('etag'), lastModified: header('last-modified') };
}

function isStrong(etag: string | undefined): etag is string {
  return etag !== undefined && !etag.startsWith('W/');
}

/**
 * The condition under which a server is to answer at all. Not `If-Range`: that asks for the whole new file where the
 * file has changed.
 */
export function condition({ etag, lastModified }: Version): [name: string, value: string] | undefined {
  if (isStrong(etag)) return ['if-match', etag];
  // A date says less than the answer's own headers, which are compared as well.
  return lastModified === undefined ? undefined : ['if-unmodified-since', lastModified];
}

/**
 * What differs between the version that was opened and that of a later answer. The strong ETag decides; where there
 * is none, the date; the weak ETag where there is nothing else.
 */
export function difference(opened: Version, now: Version): string | undefined {
  const differs = (what: string, before: unknown, after: unknown) =>
    before === after ? undefined : `its ${what} was ${before} and is ${after ?? 'no longer told'}`;
  const length = differs('length', opened.size, now.size);
  if (length !== undefined) return length;
  if (isStrong(opened.etag)) return differs('ETag', opened.etag, now.etag);
  if (opened.lastModified !== undefined) return differs('date', opened.lastModified, now.lastModified);
  return opened.etag === undefined ? undefined : differs('ETag', opened.etag, now.etag);
}

/** Refuses content that is not the file's own bytes. */
export function checkEncoding(response: Response): void {
  const encoding = response.headers.get('content-encoding');
  if (encoding !== null && encoding.trim().toLowerCase() !== 'identity') {
    throw new Failure(`the server sends ranges of a compressed form of the file (Content-Encoding: ${encoding})`);
  }
}

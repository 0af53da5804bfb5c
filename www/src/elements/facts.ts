// <ox-facts>: format, sizes and features of the image, in words, with the exact values beside.

import type { ImageInfo } from 'oxcow';
import { css, html, LitElement, nothing, type TemplateResult } from 'lit';

import { base } from '../styles.js';
import { count, exact, formatName, formatWords, percent, size } from '../words.js';

interface Fact {
  name: string;
  value: unknown;
  note?: unknown;
}

export class Facts extends LitElement {
  static override properties = { info: { attribute: false }, fileSize: { attribute: false }, virtualSize: { attribute: false } };
  declare info: ImageInfo | undefined;
  declare fileSize: number;

  static override styles = [
    base,
    css`
      dl {
        display: grid;
        grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr));
        gap: 0;
        /* The lines under the last row lie under the card's edge. */
        margin-bottom: -0.5rem;
      }
      .fact {
        padding: 0.625rem 1.25rem 0.75rem 0;
        border-top: 1px solid var(--line);
      }
      dt {
        color: var(--muted);
        font-size: 0.8125rem;
      }
      dd .value {
        display: block;
        font-size: 1.0625rem;
        font-weight: 650;
        letter-spacing: -0.005em;
        overflow-wrap: anywhere;
      }
      dd .note-text {
        display: block;
        color: var(--muted);
        font-size: 0.8125rem;
        line-height: 1.4;
        text-wrap: pretty;
      }
    `,
  ];

  override render(): TemplateResult | typeof nothing {
    const { info } = this;
    if (!info) return nothing;
    return html`<dl>
      ${this.#facts(info).map(
        ({ name, value, note }) => html`<div class="fact">
          <dt>${name}</dt>
          <dd><span class="value number">${value}</span>${note ? html`<span class="note-text number">${note}</span>` : nothing}</dd>
        </div>`,
      )}
    </dl>`;
  }

  #facts(info: ImageInfo): Fact[] {
    const facts: Fact[] = [];
    const details = info.formatSpecific?.data;
    const version = details && (details.compat === '0.10' ? 2 : 3);
    facts.push({
      name: 'Format',
      value: version ? `${formatName(info.format)}, version ${version}` : formatName(info.format),
      note: capital(formatWords(info.format)),
    });
    facts.push({ name: 'Disk size', value: size(info.virtualSize), note: `${exact(info.virtualSize)}: what a machine using it sees` });
    facts.push({
      name: 'File size',
      value: size(this.fileSize),
      note: `${exact(this.fileSize)}${Number(info.virtualSize) > 0 ? `: ${percent(this.fileSize, info.virtualSize)} of the disk size` : ''}`,
    });
    if (info.clusterSize) {
      facts.push({
        name: 'Cluster size',
        value: size(info.clusterSize),
        note: `${exact(info.clusterSize)}: the pieces in which the file stores the disk`,
      });
    }
    if (details) {
      facts.push({
        name: 'Compression',
        value: details.compressionType ?? 'zlib',
        note: 'The method for clusters that are stored compressed; the map shows which are',
      });
      facts.push({
        name: 'Reference counts',
        value: `${details.refcountBits} bits`,
        note: details.lazyRefcounts
          ? 'Written lazily: after a crash the image is repaired when it is next opened'
          : `How often a cluster may be shared by snapshots: ${shared(details.refcountBits)}`,
      });
      if (details.extendedL2) {
        facts.push({
          name: 'Subclusters',
          value: 'Yes (extended L2)',
          note: info.clusterSize ? `Each cluster is tracked in 32 parts of ${size(info.clusterSize / 32)}` : undefined,
        });
      }
      if (details.dataFile !== undefined) {
        facts.push({
          name: 'Data file',
          value: html`<code class="name">${details.dataFile}</code>`,
          note: details.dataFileRaw
            ? 'The content is in this file, which is a raw image by itself; the image holds only tables'
            : 'The content is in this file; the image holds only tables',
        });
      }
    }
    facts.push({
      name: 'Encryption',
      value: info.encrypted ? `Yes${details?.encrypt ? ` (${encryption(details.encrypt.format)})` : ''}` : 'None',
      note: info.encrypted ? 'The content cannot be read here yet; the tables can' : undefined,
    });
    if (info.backingFilename !== undefined) {
      facts.push({
        name: 'Backing file',
        value: html`<code class="name">${info.backingFilename}</code>`,
        note: info.backingFilenameFormat
          ? `Holds what this image does not (format ${formatName(info.backingFilenameFormat)})`
          : 'Holds what this image does not; the image does not say in which format',
      });
    }
    return facts;
  }
}

function capital(words: string): string {
  return words.charAt(0).toUpperCase() + words.slice(1);
}

function shared(bits: number): string {
  return bits === 1 ? 'not at all' : bits >= 32 ? 'practically without limit' : `up to ${count(2 ** bits - 1)} times`;
}

function encryption(format: string): string {
  return format === 'luks' ? 'LUKS' : format === 'aes' ? 'AES, the old weak kind' : format;
}

customElements.define('ox-facts', Facts);

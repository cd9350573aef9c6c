/** The two pictures of a classifier, drawn as SVG. */

import { Text } from '@mantine/core'
import { useState, type PointerEvent } from 'react'
import { number } from '../format'

interface RocPoint {
  threshold: number
  falsePositive: number
  truePositive: number
}

/** Metadata values may be wrapped as `{struct: ...}`, as the MLMD of upstream stored them. */
function unwrap(value: unknown): unknown {
  return value && typeof value === 'object' && 'struct' in value ? (value as { struct: unknown }).struct : value
}

export function parseRoc(metadata: Record<string, unknown> | undefined): RocPoint[] | undefined {
  const found = unwrap(metadata?.confidenceMetrics)
  if (!Array.isArray(found) || found.length === 0) return undefined
  const points = found.map((item: Record<string, unknown>) => ({
    threshold: Number(item.confidenceThreshold ?? 0),
    falsePositive: Number(item.falsePositiveRate ?? 0),
    truePositive: Number(item.recall ?? 0),
  }))
  return points.sort((a, b) => a.falsePositive - b.falsePositive || a.truePositive - b.truePositive)
}

export function parseConfusion(metadata: Record<string, unknown> | undefined): { labels: string[]; rows: number[][] } | undefined {
  const found = unwrap(metadata?.confusionMatrix) as
    | { annotationSpecs?: { displayName?: string }[]; rows?: { row?: number[] }[] }
    | undefined
  if (!found?.rows?.length) return undefined
  return {
    labels: (found.annotationSpecs ?? []).map((spec) => spec.displayName ?? ''),
    rows: found.rows.map((row) => (Array.isArray(row) ? row : (row.row ?? []))),
  }
}

function area(points: RocPoint[]): number {
  let sum = 0
  let before = { falsePositive: 0, truePositive: 0 }
  for (const point of [...points, { falsePositive: 1, truePositive: 1 }]) {
    sum += ((point.falsePositive - before.falsePositive) * (point.truePositive + before.truePositive)) / 2
    before = point
  }
  return sum
}

const SIDE = 220
const LEFT = 34

export function RocCurve({ points }: { points: RocPoint[] }) {
  const [at, setAt] = useState<RocPoint>()
  const x = (rate: number) => LEFT + rate * SIDE
  const y = (rate: number) => 8 + (1 - rate) * SIDE
  const path = points.map((point) => `${x(point.falsePositive)},${y(point.truePositive)}`).join(' ')
  const near = (event: PointerEvent<SVGSVGElement>) => {
    const box = event.currentTarget.getBoundingClientRect()
    const rate = ((event.clientX - box.left) * ((SIDE + LEFT + 12) / box.width) - LEFT) / SIDE
    setAt(points.reduce((best, point) => (Math.abs(point.falsePositive - rate) < Math.abs(best.falsePositive - rate) ? point : best)))
  }
  return (
    <figure style={{ margin: 0 }}>
      <Text size="sm" fw={600} mb={4}>ROC curve <Text span size="sm" c="dimmed" fw={400}>area {area(points).toFixed(3)}</Text></Text>
      <svg viewBox={`0 0 ${SIDE + LEFT + 12} ${SIDE + 40}`} width={SIDE + LEFT + 12} style={{ maxWidth: '100%', display: 'block' }} role="img" aria-label={`ROC curve, area ${area(points).toFixed(3)}`} onPointerMove={near} onPointerLeave={() => setAt(undefined)}>
        {[0, 0.25, 0.5, 0.75, 1].map((tick) => (
          <g key={tick} fontSize={10} fill="var(--quiet)">
            <line x1={x(0)} x2={x(1)} y1={y(tick)} y2={y(tick)} stroke="var(--line)" />
            <line x1={x(tick)} x2={x(tick)} y1={y(0)} y2={y(1)} stroke="var(--line)" />
            <text x={LEFT - 6} y={y(tick) + 3} textAnchor="end">{tick}</text>
            <text x={x(tick)} y={y(0) + 14} textAnchor="middle">{tick}</text>
          </g>
        ))}
        <text x={x(0.5)} y={SIDE + 38} fontSize={10.5} textAnchor="middle" fill="var(--quiet)">false positive rate</text>
        <line x1={x(0)} y1={y(0)} x2={x(1)} y2={y(1)} stroke="var(--quiet)" strokeDasharray="4 4" opacity={0.6} />
        <polygon points={`${x(0)},${y(0)} ${path} ${x(1)},${y(0)}`} fill="var(--mantine-primary-color-filled)" opacity={0.12} />
        <polyline points={path} fill="none" stroke="var(--mantine-primary-color-filled)" strokeWidth={2} strokeLinejoin="round" />
        {at && <circle cx={x(at.falsePositive)} cy={y(at.truePositive)} r={4.5} fill="var(--mantine-primary-color-filled)" />}
      </svg>
      <Text size="xs" c="dimmed" h={18}>
        {at ? `threshold ${number(at.threshold)}: true ${number(at.truePositive)}, false ${number(at.falsePositive)}` : 'true positive rate over false positive rate'}
      </Text>
    </figure>
  )
}

export function ConfusionMatrix({ labels, rows }: { labels: string[]; rows: number[][] }) {
  return (
    <figure style={{ margin: 0, minWidth: 0, overflowX: 'auto' }}>
      <Text size="sm" fw={600} mb={4}>Confusion matrix</Text>
      <table className="matrix">
        <thead>
          <tr><td style={{ width: 0 }} />{labels.map((label, index) => <th key={index} scope="col">predicted {label}</th>)}</tr>
        </thead>
        <tbody>
          {rows.map((row, index) => {
            const total = row.reduce((sum, value) => sum + Number(value), 0)
            return (
              <tr key={index}>
                <th scope="row" style={{ textAlign: 'right' }}>{labels[index]}</th>
                {row.map((value, column) => {
                  const share = total ? Number(value) / total : 0
                  const tone = index === column ? 'teal' : 'red'
                  return (
                    <td key={column} style={{ background: `color-mix(in srgb, var(--mantine-color-${tone}-6) ${Math.round(8 + share * 42)}%, transparent)` }}>
                      {Number(value).toLocaleString('en-US')}
                      <div style={{ fontSize: 11, fontWeight: 400 }}>{(share * 100).toFixed(1)} %</div>
                    </td>
                  )
                })}
              </tr>
            )
          })}
        </tbody>
      </table>
    </figure>
  )
}
